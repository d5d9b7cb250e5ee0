"""Rounds whose decoding rows are one captured CUDA graph; prompts are consumed eagerly before it.

A graph for each number of rows (1, 2, 4, … slots; rows that are missing idle in a scratch slot) and
draft length.  On a device without graphs the same function runs uncaptured: `specdec.static_round`,
so that a row's bytes never depend on it.

The host may begin a round before it has read what the one before gave, so that the device waits for
nobody: results travel to buffers of their own meanwhile.

What prompts are consumed goes through the model apart from the decoding rows, in a pass of its own
that is not captured: such rounds are few, their shapes many, and a long pass hides its launches.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from specdec.drafter import Drafter
from specdec.logprobs import ByteLogprob, Logprobs, logprobs_of
from specdec.round import Decode, Outcome, Round, RoundResult, RowResult, Seconds, SlotModel
from specdec.state import SlotState
from specdec.static_round import Decoded, Inputs, MakeRule, Shape, decode_rows
from specdec.stopwatch import Stopwatch
from specdec.torch_round import run_round

logger = logging.getLogger(__name__)

MOST_GRAPHS = 192
"""Graphs kept, two or more: the one that was used longest ago makes room, and what they share of
memory needs one that lives."""

LONGEST_CAPTURE_S = 60.0
"""After so long no more are captured beforehand; the others are when they are wanted."""


IDLE_SLOTS = 1
"""Slots behind those that are decoded in, where rows idle that fill up a bucket."""


Read = Callable[[], tuple[RowResult, ...]]
"""Waits for what a round gave its decoding rows."""


class Work(Protocol):
    """A round of one shape, over and over."""

    def __call__(self) -> Decoded: ...


class Capture(Protocol):
    """Turns work into what repeats it; what the work does once meanwhile must not matter."""

    def __call__(self, work: Work) -> Work: ...

    def bytes_held(self) -> int: ...


class GraphRounds:
    """Runs rounds (`specdec.round.RunRound`) of one model, drafter and state.

    `state`, the caches of the model and what the drafter keeps have a slot more than are decoded
    in, the last one, where rows idle.  Draft lengths between those of `lengths` take the next.
    Without `capture` nothing is captured.
    """

    def __init__(
        self,
        model: SlotModel,
        drafter: Drafter | None,
        state: SlotState,
        make_rule: MakeRule,
        lengths: Iterable[int],
        capture: Capture | None = None,
    ) -> None:
        self._model, self._drafter, self._state = model, drafter, state
        self._make_rule, self._capture = make_rule, capture
        self._slots = state.slots - IDLE_SLOTS
        longest = drafter.longest if drafter else 0
        self._lengths = sorted({0, longest, *(n for n in lengths if n < longest)})
        self._inputs: dict[int, Inputs] = {}
        self._arrivals: dict[Shape, Arrivals] = {}
        self._unread: deque[_Later] = deque()
        self._work: OrderedDict[Shape, Work] = OrderedDict()

    def __call__(
        self, model: SlotModel, drafter: Drafter | None, state: SlotState, work: Round
    ) -> Outcome:
        assert (model, drafter, state) == (self._model, self._drafter, self._state)
        prefills: tuple[RowResult, ...] = ()
        watch = Stopwatch(state.device)
        if work.prefills:
            prefills = run_round(model, drafter, state, replace(work, decodes=())).prefills
        if not work.decodes:
            return RoundResult((), prefills)
        # buffers on the host are two of each kind: of this round and of the one before it
        while len(self._unread) > 1:
            with suppress(Exception):  # who began it is told by a look of his own
                self._unread.popleft().read()
        outcome = _Later(self._decode(work.decodes, watch), prefills, watch)
        if any(row.alternatives >= 0 for row in work.decodes):
            outcome.read()  # or a later look at them would wait for the next round too
        self._unread.append(outcome)
        return outcome

    def shapes(self) -> list[Shape]:
        """All that rounds may have, from few rows and drafts to many."""
        observed = [True] if self._drafter else []
        return [
            Shape(rows, gamma, observes)
            for rows in row_buckets(self._slots)
            for gamma in self._lengths
            for observes in ([False, *observed] if gamma == 0 else [True])
        ]

    def prepare(self) -> None:
        """Captures graphs for all shapes, or for as many as time and their bound allow."""
        if self._capture is None:
            return
        began, held = time.monotonic(), self._capture.bytes_held()
        shapes = self.shapes()
        for shape in shapes[:MOST_GRAPHS]:
            if time.monotonic() - began > LONGEST_CAPTURE_S:
                break
            self._prepared(shape)
        logger.info(
            "captured %d graphs of %d in %.1f s, %.1f MiB; the others when they are wanted",
            len(self._work),
            len(shapes),
            time.monotonic() - began,
            (self._capture.bytes_held() - held) / 2**20,
        )

    def shape_of(self, rows: Sequence[Decode]) -> Shape:
        """The smallest shape that holds them."""
        bucket = next(n for n in row_buckets(self._slots) if n >= len(rows))
        widest = max(row.drafts for row in rows)
        gamma = next(n for n in self._lengths if n >= widest)
        return Shape(bucket, gamma, gamma > 0 or any(row.watched for row in rows))

    def _prepared(self, shape: Shape) -> Work:
        """The work of a shape, captured; what the inputs are told is forgotten."""
        if shape in self._work:
            self._work.move_to_end(shape)
            return self._work[shape]
        if shape.rows not in self._inputs:
            self._inputs[shape.rows] = Inputs(shape.rows, self._slots, self._state.device)
        inputs = self._inputs[shape.rows]

        def work() -> Decoded:
            return decode_rows(
                self._model, self._drafter, self._state, inputs, shape, self._make_rule
            )

        captured: Work = work
        if self._capture is not None:
            if len(self._work) >= MOST_GRAPHS:
                self._work.popitem(last=False)
            inputs.send([], [], [])  # all rows idle: nothing that a slot knows is changed
            began = time.monotonic()
            captured = self._capture(work)
            logger.debug("captured %s in %.2f s", shape, time.monotonic() - began)
        self._work[shape] = captured
        return captured

    def _decode(self, rows: Sequence[Decode], watch: Stopwatch) -> Read:
        """Begins a round; what is returned waits for it, before the next but one is begun."""
        shape = self.shape_of(rows)
        work = self._prepared(shape)
        self._inputs[shape.rows].send(
            [row.slot for row in rows],
            [row.drafts for row in rows],
            [row.watched for row in rows],
        )
        decoded = work()
        watch.lap()
        logprobs = _logprobs(rows, decoded)
        if shape not in self._arrivals:
            self._arrivals[shape] = Arrivals(decoded.result)
        arrived = self._arrivals[shape].expect(decoded.result)

        def read() -> tuple[RowResult, ...]:
            results = []
            for index, (row, numbers) in enumerate(zip(rows, arrived(), strict=False)):
                count, accepted, ended = numbers[shape.width :]
                output = bytes(numbers[:count])
                records: tuple[ByteLogprob, ...] = ()
                if logprobs is not None and row.alternatives >= 0:
                    records = logprobs.records(index, output, row.alternatives)
                results.append(RowResult(output, row.drafts, accepted, bool(ended), records))
            return tuple(results)

        return read


class _Later:
    """What a round that has begun gave (`specdec.round.Outcome`); a graph is one piece, so all that
    it took is told as the pass."""

    elapsed = ()
    drafting = 0

    def __init__(self, read: Read, prefills: tuple[RowResult, ...], watch: Stopwatch) -> None:
        self._read, self.prefills, self._watch = read, prefills, watch

    @cached_property
    def decodes(self) -> tuple[RowResult, ...]:
        return self._read()

    @property
    def seconds(self) -> Seconds:
        return Seconds(verify=sum(self._watch.laps()))

    def read(self) -> None:
        """Takes it off the buffers, for a look later on."""
        self.decodes  # noqa: B018


class Arrivals:
    """Results of one shape on their way to the host, which need not wait for them one by one.

    Of two rounds in a row each has a buffer of its own.
    """

    def __init__(self, result: Tensor) -> None:
        pin = result.device.type == "cuda"
        host = [torch.empty(result.shape, dtype=result.dtype, pin_memory=pin) for _ in range(2)]
        self._next, self._other = ((each, torch.cuda.Event() if pin else None) for each in host)

    def expect(self, result: Tensor) -> Callable[[], list[list[int]]]:
        """Sends for a result [B, W + 3]; what is returned waits for it and gives its numbers."""
        host, event = self._next
        self._next, self._other = self._other, self._next
        host.copy_(result, non_blocking=True)
        if event is not None:
            event.record()

        def arrived() -> list[list[int]]:
            if event is not None:
                event.synchronize()
            numbers: list[list[int]] = host.tolist()
            return numbers

        return arrived


def _logprobs(rows: Sequence[Decode], decoded: Decoded) -> Logprobs | None:
    """Beside the graph, of logits that it leaves: rounds in which somebody wants them are few."""
    most = max(row.alternatives for row in rows)
    if most < 0:
        return None
    count = len(rows)
    return logprobs_of(decoded.logits[:count], decoded.chosen[:count], most)


def row_buckets(slots: int) -> list[int]:
    """1, 2, 4, … and all slots."""
    counts = [1 << n for n in range(slots.bit_length())]
    return counts if counts[-1] == slots else [*counts, slots]
