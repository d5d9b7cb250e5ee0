"""Rows in slots, from the host's side: open, step, close.

Turns plain numbers (which slot drafts how much, which prompt bytes are consumed) into a round.
Knows no queue and no request: that is a scheduler's work, and `generate` below is the smallest one.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch

from specdec.attention import LONGEST_SPAN
from specdec.config import LONGEST_DRAFT
from specdec.drafter import SlotDrafter
from specdec.interrupt import Interrupt
from specdec.logprobs import ByteLogprob
from specdec.lookup import TIERS, Lookup
from specdec.round import (
    MOST_ROUNDS,
    Decode,
    Prefill,
    Round,
    RowResult,
    RunRound,
    Seconds,
    SlotModel,
    Try,
)
from specdec.sampling import Features, SamplingParams
from specdec.state import SlotState
from specdec.torch_round import run_round

LONGEST_CHUNK = LONGEST_SPAN
"""Prompt bytes that one slot consumes in a round at most."""

CHUNKS_AHEAD = 8
"""So many such chunks are worth one pass where a device is waited for and not its products."""


@dataclass(frozen=True)
class Begun:
    """So many rounds that were begun; to be called once, in order, for what they gave each slot."""

    rounds: int
    read: Callable[[], dict[int, RowResult]]

    def __call__(self) -> dict[int, RowResult]:
        return self.read()


@dataclass(frozen=True)
class Job:
    """One text to continue: at most `max_tokens` bytes after the prompt (at least one byte).

    No round of it drafts more than `draft_length` bytes; with 0 the drafter never hears of it.
    With `logprobs` the output's log-probabilities are given, and of so many alternatives; with
    `score_prompt` the prompt's too.  With 0 `max_tokens` the prompt is consumed and that is all.
    """

    prompt: bytes
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    draft_length: int = 0
    eos: int | None = None
    logprobs: int | None = None
    score_prompt: bool = False


Model = TypeVar("Model", bound=SlotModel)


class Decoder(Generic[Model]):
    """A model, perhaps a drafter, and the slots that they decode.

    `context` is the most bytes of prompt and output together.  `state` may have slots behind
    those, which nothing is opened in.  `ahead` tells that a round had better be begun before the
    one before it is read.  With a function for `Decoder.repeats` rounds are `in_core`: they look
    drafts up.
    """

    def __init__(
        self,
        model: Model,
        drafter: SlotDrafter | None,
        *,
        slots: int,
        context: int,
        device: torch.device,
        run_round: RunRound = run_round,
        state: SlotState | None = None,
        ahead: bool = False,
        repeats: Callable[[int], Mapping[Try, int]] | None = None,
    ) -> None:
        self.model, self.drafter = model, drafter
        self.run_round, self.ahead = run_round, ahead
        self.in_core, self._repeats = repeats is not None, repeats
        self.chunk = LONGEST_CHUNK * (CHUNKS_AHEAD if ahead else 1)
        """Prompt bytes that all slots together had better consume in a round at most."""
        self.slots, self.context, self.device = slots, context, device
        self.state = state or SlotState(slots, device)
        self.interrupt = Interrupt()
        """Ends a call of several rounds."""
        self._rows: list[_Row | None] = [None] * slots
        self._held: list[_Held | None] = [None] * slots
        """What prompt each slot's cache begins with, whether or not a row is there."""
        self.seconds = Seconds()
        """Where the last round's time went, or that of several."""
        self.elapsed: tuple[float, ...] = ()
        """What each of them took, if that is known."""
        self.drafting = 0
        """In how many of them drafts were wanted, if their parts are told apart."""

    def open(self, slot: int, job: Job) -> None:
        """Takes a job into a free slot.  ValueError where it cannot fit."""
        if self._rows[slot] is not None:
            raise ValueError(f"slot {slot} is taken")
        if not job.prompt:
            raise ValueError("a prompt of no bytes cannot be continued")
        if job.max_tokens < 0:
            raise ValueError(f"max_tokens must be at least 0, not {job.max_tokens}")
        if job.score_prompt and job.logprobs is None:
            raise ValueError("score_prompt needs logprobs")
        end = len(job.prompt) + job.max_tokens
        if end > self.context:
            raise ValueError(
                f"prompt ({len(job.prompt)}) and max_tokens ({job.max_tokens}) exceed the context "
                f"of {self.context} bytes"
            )
        if job.draft_length and self.drafter is None:
            raise ValueError("there is no drafter to speculate with")
        if self.drafter is not None and job.draft_length > self.drafter.longest:
            raise ValueError(f"draft_length must be at most {self.drafter.longest}")
        self.state.open(slot, job.prompt, end, job.params, job.seed, job.eos)
        self.repeats(slot)  # of who was there before
        held = self._held[slot]
        if held is not None and held.prompt != job.prompt:
            self._held[slot] = None
        self._rows[slot] = _Row(job, end, job.params.features)

    def close(self, slot: int) -> None:
        """Frees a slot, done or not."""
        self._rows[slot] = None

    def fork(self, source: int, slot: int) -> None:
        """Spares a fresh slot its prompt: what a row in `source` consumed of the same one is
        copied, whatever it decodes meanwhile and even if it has been closed; `source` may be the
        slot itself.

        ValueError where the source does not hold that prompt, or the slot is not fresh.
        """
        row, held = self._row(slot), self._held[source]
        if held is None or held.prompt != row.job.prompt:
            raise ValueError(f"slot {source} does not hold the prompt of slot {slot}")
        if row.consumed or row.length >= len(row.job.prompt):
            raise ValueError(f"slot {slot} has begun by itself")
        if row.watched and not held.watched:
            raise ValueError(f"slot {slot} drafts and slot {source} did not")
        if source != slot:
            self.model.copy(source, slot, held.consumed)
        if self.drafter is not None and row.watched:
            self.drafter.copy(source, slot, held.consumed)
        row.consumed = held.consumed
        self._held[slot] = _Held(held.prompt, held.consumed, row.watched)

    def repeats(self, slot: int) -> Mapping[Try, int]:
        """Of rounds in which the slot's text was looked through, since this was last asked: what
        `LONGEST_DRAFT` drafts from there would have given, whether or not any were made, and how
        often.  `PLAIN` counts rounds without a match."""
        return self._repeats(slot) if self._repeats else {}

    @property
    def places_held(self) -> int:
        """Places of the cache that hold something, in all slots; may be asked from any thread."""
        return sum(row.held for row in self._rows if row is not None)

    def to_prefill(self, slot: int) -> int:
        """Prompt bytes that the slot must consume before it decodes (the last is a round's)."""
        row = self._row(slot)
        return len(row.job.prompt) - 1 - row.consumed

    def step(
        self,
        drafts: Mapping[int, int],
        chunks: Mapping[int, int] | None = None,
        lookups: Mapping[int, Lookup] | None = None,
        rounds: int = 1,
        span_s: float = math.inf,
        p_min: float = 0.0,
    ) -> dict[int, RowResult]:
        """One round: slots of `drafts` decode with so many drafts (0: plain), slots of `chunks`
        consume so many bytes of their prompt.  Returns what each decoding slot got, and each that
        scores its prompt.

        Slots of `lookups` are looked through, and draft from their text where that matches and as
        many are wanted.  A row drafts no further than its last byte, whatever is asked.  Up to
        `rounds` rounds are run (see `specdec.round.Round`), and one only where log-probabilities
        are wanted or, in the core, prompts are consumed.  The compiled core omits drafts that, with
        all before them, are less likely than `p_min` to be kept.
        """
        return self.begin(drafts, chunks, lookups, rounds, span_s, p_min)()

    def begin(
        self,
        drafts: Mapping[int, int],
        chunks: Mapping[int, int] | None = None,
        lookups: Mapping[int, Lookup] | None = None,
        rounds: int = 1,
        span_s: float = math.inf,
        p_min: float = 0.0,
    ) -> Begun:
        """Begins a round, or several.

        Before they are read others may be begun, once.  A row that these end gets bytes of those
        that are to be thrown away, or none where it is sure to end.
        """
        if lookups and not self.in_core:
            raise ValueError("drafts are looked up by the compiled core alone")
        of = lookups or {}
        left = {slot: self._left(slot) for slot in drafts}
        decodes = [self._decode(slot, n, of.get(slot)) for slot, n in drafts.items() if left[slot]]
        prefills = [self._prefill(slot, size) for slot, size in (chunks or {}).items()]
        if (prefills and self.in_core) or any(row.alternatives >= 0 for row in decodes):
            rounds = 1
        rounds = max(1, min(rounds, MOST_ROUNDS, max(left.values(), default=1)))
        self._refill_noise(decodes)
        work = Round(tuple(decodes), tuple(prefills), rounds, span_s, self.interrupt, p_min)
        outcome = self.run_round(self.model, self.drafter, self.state, work)
        begun = outcome.rounds
        rows = [self._row(decode.slot) for decode in decodes]
        for row in rows:
            row.unread += begun
        for prefill in prefills:
            row = self._row(prefill.slot)
            row.consumed += len(prefill.text)
            self._held[prefill.slot] = _Held(row.job.prompt, row.consumed, row.watched)
            if self.drafter is not None and prefill.watched is not None:
                self.drafter.keep(prefill.slot)

        def read() -> dict[int, RowResult]:
            results = {slot: NOTHING for slot, rest in left.items() if not rest}
            for row, decode, result in zip(rows, decodes, outcome.decodes, strict=True):
                row.unread -= begun
                if not self.in_core:
                    result = row.within(result)
                row.length += len(result.output)
                results[decode.slot] = result
            for prefill, result in zip(prefills, outcome.prefills, strict=True):
                if prefill.following is not None:
                    results[prefill.slot] = result
            self.seconds, self.elapsed = outcome.seconds, outcome.elapsed
            self.drafting = outcome.drafting
            return results

        return Begun(begun, read)

    def _row(self, slot: int) -> "_Row":
        row = self._rows[slot]
        if row is None:
            raise ValueError(f"slot {slot} is free")
        return row

    def _left(self, slot: int) -> int:
        """Bytes that it may get beyond those that are sure to come."""
        row = self._row(slot)
        return max(0, row.end - row.length - 1 - row.unread)

    def _decode(self, slot: int, wanted: int, lookup: Lookup | None) -> Decode:
        row = self._row(slot)
        if self.to_prefill(slot):
            raise ValueError(f"slot {slot} has not consumed its prompt")
        if wanted > row.job.draft_length:
            raise ValueError(f"slot {slot} was opened to draft less than {wanted} bytes")
        if lookup is not None and (
            len(lookup) != len(TIERS) or not all(0 <= n <= LONGEST_DRAFT for n in lookup)
        ):
            raise ValueError(
                f"slot {slot}: a lookup has {len(TIERS)} lengths up to {LONGEST_DRAFT}"
            )
        drafts = min(wanted, row.end - row.length - 2)
        return Decode(slot, drafts, row.features, _alternatives(row.job), row.watched, lookup)

    def _prefill(self, slot: int, size: int) -> Prefill:
        row = self._row(slot)
        if not 0 < size <= min(LONGEST_CHUNK, self.to_prefill(slot)):
            raise ValueError(f"slot {slot} cannot consume {size} bytes of its prompt")
        begin, end = row.consumed, row.consumed + size
        watched = None
        if self.drafter is not None and row.watched:
            first = max(0, len(row.job.prompt) - 1 - self.drafter.memory)
            watched = first if first < end else None
        return Prefill(
            slot,
            row.job.prompt[begin:end],
            begin,
            row.job.prompt[begin + 1 : end + 1] if row.job.score_prompt else None,
            max(0, _alternatives(row.job)),
            watched,
        )

    def _refill_noise(self, decodes: Sequence[Decode]) -> None:
        """For as many bytes as each may get from a round."""
        # greedy rows too: what they share a pass with may look at theirs, and leave it
        if any(decode.features.sampled for decode in decodes):
            rows = [self._row(decode.slot) for decode in decodes]
            self.state.refill_noise(
                [decode.slot for decode in decodes],
                [row.length for row in rows],
                1
                + max(decode.drafts for decode in decodes)
                + max(row.unread * (1 + row.job.draft_length) for row in rows),
            )


def _alternatives(job: Job) -> int:
    """-1 where no log-probabilities are wanted."""
    return -1 if job.logprobs is None else job.logprobs


@dataclass(frozen=True)
class _Held:
    """So many bytes of a prompt, consumed before the drafter's eyes or not."""

    prompt: bytes
    consumed: int
    watched: bool


class _Row:
    """The host's copy of where a slot stands."""

    def __init__(self, job: Job, end: int, features: Features) -> None:
        self.job, self.end, self.features = job, end, features
        self.length = len(job.prompt) - 1
        self.unread = 0
        """Rounds that were begun and not read."""
        self.consumed = 0
        self.watched = job.draft_length > 0
        """Whether the drafter is told of it: a row that never drafts need not pay for that."""

    @property
    def held(self) -> int:
        """Places of the cache that it has filled."""
        return self.consumed + self.length - (len(self.job.prompt) - 1)

    def within(self, result: RowResult) -> RowResult:
        """Drafts beyond its end, which rounds before have brought nearer, are no drafts."""
        at, rounds = self.length, []
        if self.end - at - len(result.output) >= 2 + result.drafted:
            return result
        for tried in result.rounds:
            drafted = max(0, min(tried.drafted, self.end - at - 2))
            rounds.append(Try(drafted, min(drafted, tried.accepted)))
            at += 1 + tried.accepted
        if tuple(rounds) == result.rounds:
            return result
        return replace(
            result,
            drafted=sum(tried.drafted for tried in rounds),
            accepted=sum(tried.accepted for tried in rounds),
            tries=tuple(rounds) if result.tries else (),
            times=None,
        )


NOTHING = RowResult(b"", 0, 0, ended=False)
"""What a row gets from rounds that it is sure not to live to see."""


@dataclass
class Output:
    """A finished job: what each of its rounds gave, or several together."""

    results: list[RowResult] = field(default_factory=list)
    prompt_logprobs: tuple[ByteLogprob, ...] = ()
    """Of the prompt's bytes from its second on, if wanted."""

    @property
    def output(self) -> bytes:
        """Its bytes, without the end-of-document byte."""
        whole = b"".join(result.output for result in self.results)
        return whole[:-1] if self.ended else whole

    @property
    def ended(self) -> bool:
        return bool(self.results) and self.results[-1].ended

    @property
    def rounds(self) -> int:
        return sum(len(result.rounds) for result in self.results)

    @property
    def drafted(self) -> int:
        return sum(result.drafted for result in self.results)

    @property
    def accepted(self) -> int:
        return sum(result.accepted for result in self.results)


def run_rounds(
    decoder: Decoder[Any],
    drafts: Mapping[int, int],
    count: int,
    lookups: Mapping[int, Lookup] | None = None,
) -> Iterator[dict[int, RowResult]]:
    """So many rounds of the same rows, each call begun when it had better be (`Decoder.ahead`) and
    of as many as it may have."""
    begun: deque[Begun] = deque()
    done = 0
    while done < count:
        begun.append(decoder.begin(drafts, None, lookups, count - done))
        done += begun[-1].rounds
        if len(begun) > decoder.ahead:
            yield begun.popleft()()
    for read in begun:
        yield read()


def generate(
    decoder: Decoder[Any], jobs: Sequence[Job], *, rounds: int = MOST_ROUNDS, p_min: float = 0.0
) -> list[Output]:
    """Decodes the jobs together, one slot each, to their ends; up to so many rounds a call, and
    without drafts that are too unlikely (`p_min`, see `Decoder.step`).

    >>> outputs = generate(decoder, [Job(b"def ", 16), Job(b"def ", 16, draft_length=5)])
    >>> outputs[0].output == outputs[1].output
    True
    """
    if len(jobs) > decoder.slots:
        raise ValueError(f"{len(jobs)} jobs for {decoder.slots} slots")
    outputs = [Output() for _ in jobs]
    emitted = [0] * len(jobs)
    running = set(range(len(jobs)))
    for slot, job in enumerate(jobs):
        decoder.open(slot, job)
    begun: deque[Begun] = deque()
    try:
        while running:
            if done := {s for s in running if not (jobs[s].max_tokens or decoder.to_prefill(s))}:
                running -= done
                continue
            chunks = {s: min(LONGEST_CHUNK, decoder.to_prefill(s)) for s in sorted(running)}
            chunks = {slot: size for slot, size in chunks.items() if size}
            drafts = {s: jobs[s].draft_length for s in sorted(running) if s not in chunks}
            begun.append(decoder.begin(drafts, chunks, None, rounds, p_min=p_min))
            while len(begun) > (decoder.ahead and not chunks):
                for slot, result in begun.popleft()().items():
                    if slot in chunks:
                        outputs[slot].prompt_logprobs += result.logprobs
                    elif slot in running:
                        outputs[slot].results.append(result)
                        emitted[slot] += len(result.output)
                        if result.ended or emitted[slot] == jobs[slot].max_tokens:
                            running.discard(slot)
    finally:
        for slot in range(len(jobs)):
            decoder.close(slot)
    return outputs
