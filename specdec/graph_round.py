"""Rounds whose decoding rows are one captured CUDA graph; prompts are consumed eagerly before it.

A graph for each number of rows (1, 2, 4, … slots; rows that are missing idle in a scratch slot) and
draft length.  On a device without graphs the same function runs uncaptured: `specdec.static_round`,
so that a row's bytes never depend on it.

The host may begin a round before it has read what the one before gave, so that the device waits for
nobody: results travel to buffers of their own meanwhile.  Where the host takes longer than a round
it begins several at once (`specdec.bursts`).

What prompts are consumed goes through the model apart from the decoding rows, in a pass of its own
that is not captured: such rounds are few, their shapes many, and a long pass hides its launches.
"""

import logging
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.bursts import MOST_BURST, Bursts
from specdec.drafter import Drafter
from specdec.logprobs import ByteLogprob, Logprobs, logprobs_of
from specdec.round import (
    PLAIN,
    Decode,
    Outcome,
    Round,
    RoundResult,
    RowResult,
    Seconds,
    SlotModel,
    Try,
)
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
        bursts: Callable[[], Bursts] = Bursts,
    ) -> None:
        self._model, self._drafter, self._state = model, drafter, state
        self._make_rule, self._capture = make_rule, capture
        self._slots = state.slots - IDLE_SLOTS
        longest = drafter.longest if drafter else 0
        self._lengths = sorted({0, longest, *(n for n in lengths if n < longest)})
        self._inputs: dict[int, Inputs] = {}
        self._bursts = defaultdict[int, Bursts](bursts)
        self._seconds: dict[Shape, float] = {}
        """What a round took lately."""
        self._rows = 0
        """Of the last call, if all that it took the host was its rows' doing."""
        self._called, self._waited = 0.0, 0.0
        """When it came, and for how long it was waited for."""
        self._arrivals = defaultdict[Shape, Arrivals](Arrivals)
        self._unread: deque[_Later] = deque()
        self._work: OrderedDict[Shape, Work] = OrderedDict()

    def __call__(
        self, model: SlotModel, drafter: Drafter | None, state: SlotState, work: Round
    ) -> Outcome:
        assert (model, drafter, state) == (self._model, self._drafter, self._state)
        now = time.perf_counter()
        if self._rows:
            self._bursts[self._rows].observe(now - self._called - self._waited)
        self._called, self._waited, self._rows = now, 0.0, 0
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
        outcome = self._decode(work, prefills, watch)
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

    def _decode(self, work: Round, prefills: tuple[RowResult, ...], watch: Stopwatch) -> "_Later":
        """Begins a round or several; they are to be read before the next but one call."""
        rows = work.decodes
        shape = self.shape_of(rows)
        alike = shape in self._work and not work.prefills
        run = self._prepared(shape)
        arrivals = self._arrivals[shape]
        self._inputs[shape.rows].send(
            [row.slot for row in rows],
            [row.drafts for row in rows],
            [row.watched for row in rows],
        )
        count = self._bursts[shape.rows].rounds(self._seconds.get(shape), work.span_s)
        count, begun = min(count, work.repeats), 0
        watch.lap()
        while begun < count and not (begun and work.interrupt.is_set):
            decoded = run()
            arrivals.expect(decoded.result, begun)
            begun += 1
        watch.lap()
        logprobs = _logprobs(rows, decoded)
        self._rows = shape.rows if alike else 0
        arriving = arrivals.sent(begun)

        def read() -> tuple[RowResult, ...]:
            before = time.perf_counter()
            numbers = arriving.numbers()
            self._waited += time.perf_counter() - before
            if alike and (laps := watch.laps()):
                self._seconds[shape] = laps[-1] / begun
            return _results(rows, numbers, logprobs)

        return _Later(begun, read, prefills, watch)


def _results(
    rows: Sequence[Decode], numbers: NDArray[np.int64], logprobs: Logprobs | None
) -> tuple[RowResult, ...]:
    """Of numbers [n, B, W + 3] that n rounds gave; rows are many, so no loop is over both."""
    several, width = len(numbers) > 1, numbers.shape[2] - 3
    counts, accepted, ended = numbers[:, : len(rows), width:].transpose(2, 1, 0)  # [B, n]
    emitted = np.arange(width) < counts[:, :, None]
    output = numbers[:, : len(rows), :width].transpose(1, 0, 2)[emitted].astype(np.uint8).tobytes()
    # behind its end a row emits nothing
    lived = np.count_nonzero(counts, axis=1).clip(1).tolist()
    begin, results = 0, []
    figures = zip(rows, counts.sum(1).tolist(), lived, ended.any(1).tolist(), strict=True)
    for index, (row, size, rounds, over) in enumerate(figures):
        text = output[begin : begin + size]
        begin += size
        right = 0
        tries, times = (PLAIN,) * rounds, {PLAIN: rounds}
        if row.drafts:
            tries = tuple(Try(row.drafts, n) for n in accepted[index, :rounds].tolist())
            times, right = Counter(tries), sum(tried.accepted for tried in tries)
        records: tuple[ByteLogprob, ...] = ()
        if logprobs is not None and row.alternatives >= 0:
            records = logprobs.records(index, text, row.alternatives)
        more = (tries, 0, times) if several else ()
        results.append(RowResult(text, row.drafts * rounds, right, over, records, *more))
    return tuple(results)


class _Later:
    """What rounds that have begun gave (`specdec.round.Outcome`); a graph is one piece, so all that
    they took is told as the pass."""

    elapsed = ()
    drafting = 0

    def __init__(
        self,
        rounds: int,
        read: Callable[[], tuple[RowResult, ...]],
        prefills: tuple[RowResult, ...],
        watch: Stopwatch,
    ) -> None:
        self.rounds, self.prefills = rounds, prefills
        self._read, self._watch = read, watch

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

    Of two calls in a row each has a buffer of its own.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def expect(self, result: Tensor, at: int) -> None:
        """Sends for the result [B, W + 3] of the call's round `at`."""
        if not self._buffers:
            pin = result.device.type == "cuda"
            for _ in range(2):
                shape = MOST_BURST, *result.shape
                host = torch.empty(shape, dtype=result.dtype, pin_memory=pin)
                self._buffers.append((host, torch.cuda.Event() if pin else None))
        self._buffers[0][0][at].copy_(result, non_blocking=True)

    def sent(self, rounds: int) -> "Arriving":
        """All results of the call's rounds have been sent for."""
        host, event = self._buffers[0]
        self._buffers.reverse()
        if event is not None:
            event.record()
        return Arriving(host[:rounds], event)


@dataclass(frozen=True)
class Arriving:
    """Results of a call: host [rounds, B, W + 3], filled once the event, if any, is over."""

    host: Tensor
    event: torch.cuda.Event | None

    def numbers(self) -> NDArray[np.int64]:
        """Waits for them."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.numpy()


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
