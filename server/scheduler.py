"""Who decodes in which slot this round: plain Python, no tensors, no threads, no clock.

First come, first served.  Rows join and leave at every round; prompts are consumed in chunks that
share rounds with decoding, at most `chunk` bytes of prompt in a round.  A row whose prompt another
one consumes, or the last one in a slot has consumed, forks off instead of consuming it again.  The
engine carries out a `Plan` and hands back what each row got; the scheduler turns that into the
requests' events.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.draft_lengths import DraftLengths
from server.messages import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Speculation,
    Submission,
    Timing,
)
from server.stops import StopMatcher
from server.tally import Tally, per_byte_tallies
from specdec.decoder import LONGEST_CHUNK
from specdec.logprobs import ByteLogprob
from specdec.lookup import Lookup
from specdec.round import MOST_ROUNDS, RowResult

SPAN_S, LONGEST_SPAN_S = 8e-3, 50e-3
"""Rounds follow one another for so long before the host has its turn, and where nobody wants output
before it, at most; who arrives or gives up is attended to behind a round."""

Deliveries = list[tuple[str, Event]]
"""(request_id, event) pairs, in order."""


@dataclass(frozen=True)
class Plan:
    """One round: slots to free, rows to open in slots, slots that take over what another has
    consumed (slot, source), drafts and prompt bytes by slot; of the drafts, those `chosen` here and
    what to look up instead, and how likely the prophet's must be; the scheduler's `rows` in those
    slots, who need not be there any more when results come.  Or up to `rounds` rounds within
    `span_s`, if no prompt is consumed."""

    close: tuple[int, ...] = ()
    open: tuple[tuple[int, Submission], ...] = ()
    forks: tuple[tuple[int, int], ...] = ()
    drafts: Mapping[int, int] = field(default_factory=dict)
    chunks: Mapping[int, int] = field(default_factory=dict)
    chosen: Mapping[int, int] = field(default_factory=dict)
    lookups: Mapping[int, Lookup] = field(default_factory=dict)
    rows: Mapping[int, "_Row"] = field(default_factory=dict, repr=False, compare=False)
    rounds: int = 1
    span_s: float = SPAN_S
    p_min: float = 0.0

    @property
    def empty(self) -> bool:
        return not (self.close or self.open or self.forks or self.drafts or self.chunks)

    def without(self, slots: Collection[int]) -> "Plan":
        """The same of the rows in other slots."""
        return replace(
            self,
            forks=tuple(fork for fork in self.forks if fork[0] not in slots),
            drafts={slot: n for slot, n in self.drafts.items() if slot not in slots},
            chunks={slot: n for slot, n in self.chunks.items() if slot not in slots},
            chosen={slot: n for slot, n in self.chosen.items() if slot not in slots},
            lookups={slot: each for slot, each in self.lookups.items() if slot not in slots},
        )


class _Row:
    """A request and how far it is."""

    def __init__(self, submission: Submission, now: float) -> None:
        self.submission = submission
        self.matcher = StopMatcher(
            submission.stops, submission.params.min_tokens, submission.include_stop
        )
        self.to_prefill = len(submission.prompt) - 1
        self.consuming = 0
        """Of those, bytes that are consumed in rounds of which nothing has been heard."""
        self.submitted = self.admitted = self.decoding = self.emitted = now
        self.deadline = now + submission.timeout_s
        self.generated = self.released = 0
        self.first_byte: float | None = None
        """When it was there."""
        self.rounds = self.drafts = self.drafted = self.accepted = 0
        self.lookup_drafted = self.lookup_accepted = 0
        self.per_position: list[int] = []
        self.decides = submission.mode is Mode.AUTO and (
            submission.draft_length > 0 or submission.lookup_length > 0
        )
        """Whether its draft lengths are left open."""
        self.started = self.entered = False
        self.leader: _Row | None = None
        """The row whose prompt this one will take over, once it has consumed it."""
        self.source = -1
        """The slot of the leader."""
        self.cached = 0
        """Bytes of its prompt that it took over."""
        self.prompt_logprobs = [ByteLogprob(submission.prompt[0], None)]
        self.held_logprobs: list[ByteLogprob] = []
        """Of output that the matcher holds back."""

    def may_lead(self, other: "_Row") -> bool:
        """Whether it consumes, or has consumed, what `other` needs.

        What a row that drafts needs to know only rows that draft have; scores of a prompt only rows
        that want as many.
        """
        mine, its = self.submission, other.submission
        knows = mine.draft_length or not its.draft_length
        scores = not its.scores_prompt or (mine.scores_prompt and mine.logprobs == its.logprobs)
        return bool(mine.prompt == its.prompt and knows and scores)

    @property
    def places(self) -> int:
        """Bytes of prompt and output so far, once it decodes."""
        return len(self.submission.prompt) + self.generated

    @property
    def left(self) -> int:
        """Bytes that it may still write."""
        return self.submission.max_tokens - self.generated

    @property
    def stays_plain(self) -> bool:
        """Whether its lengths were left open and are 0 to the end."""
        return self.submission.mode is Mode.AUTO and not self.decides

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for its first byte."""
        return not self.generated and self.submission.awaited

    @property
    def patience_s(self) -> float:
        """How long its output may stay unseen; a stop string is found when it is looked at."""
        return SPAN_S if self.submission.stops else self.submission.interval_s

    def stay_unwatched(self) -> None:
        """Has the prophet never draft for it."""
        self.submission = replace(self.submission, draft_length=0)
        self.decides = self.submission.lookup_length > 0

    def begin_decoding(self, now: float) -> None:
        self.to_prefill = 0
        self.decoding = self.emitted = now

    def start(self, now: float) -> list[Event]:
        """The events of having consumed the prompt."""
        self.started = True
        submission = self.submission
        events: list[Event] = []
        if submission.echo:
            scores = tuple(self.prompt_logprobs) if submission.scores_prompt else ()
            events.append(Progress(submission.prompt, echo=True, logprobs=scores))
        if not submission.max_tokens:
            events.append(self.finish(FinishReason.LENGTH, now))
        return events

    def take(self, result: RowResult, now: float, per_byte: Tally) -> list[Event]:
        """The events of a round or several; the last is `Finished` if they ended the request.

        `per_byte` gets a sample for each byte, of what it took when shared among theirs.
        """
        submission = self.submission
        fresh = result.output[:-1] if result.ended else result.output
        if result.logprobs:
            self.held_logprobs += result.logprobs[: len(fresh)]
        output, stopped = self.matcher.feed(fresh)
        kept = len(fresh) - self.matcher.surplus
        self._count(result, kept + (result.ended and not stopped))
        self.generated += len(fresh)
        per_byte.observe((now - self.emitted) / len(result.output), kept)
        self.emitted = now
        if stopped or result.ended or self.generated >= submission.max_tokens:
            if not stopped:
                output += self.matcher.flush()
            reason = FinishReason.STOP if stopped or result.ended else FinishReason.LENGTH
            return [*self._progress(output), self.finish(reason, now)]
        return self._progress(output)

    def _count(self, result: RowResult, kept: int) -> None:
        """Rounds that gave `kept` bytes: what lies behind a stop counts neither as output nor as
        accepted."""
        tally = result.tally
        if kept < len(result.output):
            tries, begin = [], 0
            for tried in result.rounds:
                if begin >= kept:
                    break
                tries.append(tried._replace(accepted=min(tried.accepted, kept - begin)))
                begin += 1 + tried.accepted
            tally = Counter(tries)
        for (drafted, accepted, tier, _), times in tally.items():
            self.rounds += times
            if drafted:
                self.drafts += times
                self.drafted += times * drafted
                self.accepted += times * accepted
                if tier >= 0:
                    self.lookup_drafted += times * drafted
                    self.lookup_accepted += times * accepted
                self.per_position += [0] * (drafted - len(self.per_position))
                for position in range(accepted):
                    self.per_position[position] += times

    def _progress(self, output: bytes) -> list[Event]:
        return [Progress(output, logprobs=self._release(output))] if output else []

    def _release(self, output: bytes) -> tuple[ByteLogprob, ...]:
        """Counts output on its way out; its log-probabilities, if wanted."""
        self.released += len(output)
        if not self.held_logprobs:
            return ()
        scores, self.held_logprobs = (
            tuple(self.held_logprobs[: len(output)]),
            self.held_logprobs[len(output) :],
        )
        return scores

    def finish(self, reason: FinishReason, now: float) -> Finished:
        held = self.matcher.flush()
        scores = self._release(held)
        decoding = self.decoding if self.started else now
        first = self.first_byte
        return Finished(
            output=held,
            reason=reason,
            completion_tokens=self.released,
            speculation=Speculation(
                self.rounds,
                self.drafts,
                self.drafted,
                self.accepted,
                tuple(self.per_position),
                self.lookup_drafted,
                self.lookup_accepted,
            ),
            timing=Timing(
                queue_s=self.admitted - self.submitted,
                prefill_s=decoding - self.admitted,
                decode_s=now - decoding,
                first_byte_s=None if first is None else first - self.submitted,
            ),
            logprobs=scores,
            begun=self.started,
            cached_tokens=self.cached,
        )


class Scheduler:
    """Waiting requests, running rows and free slots.

    `lengths` decides for rows that leave it open; without it they draft all that they may.  Drafts
    are omitted where they are less likely than `p_min`, or without it than pays.  Where there are
    `long_calls` a first byte that somebody waits for gets a call of its own.
    """

    def __init__(
        self,
        slots: int,
        chunk: int,
        lengths: DraftLengths | None = None,
        p_min: float | None = None,
        *,
        long_calls: bool = True,
    ) -> None:
        self._chunk, self._lengths, self._p_min = chunk, lengths, p_min
        self._long_calls = long_calls
        self._slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._closing: list[int] = []
        self._waiting: deque[_Row] = deque()
        self._running: dict[int, _Row] = {}
        self._last: dict[int, _Row] = {}
        """The newest row of each slot, there or gone: the slot's cache begins with its prompt."""
        self._no_deadline_before = math.inf
        self.per_byte = per_byte_tallies()
        """Seconds per byte of output."""

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, submission: Submission, now: float) -> None:
        row = _Row(submission, now)
        self._waiting.append(row)
        self._no_deadline_before = min(self._no_deadline_before, row.deadline)

    def cancel(self, request_id: str, now: float) -> Deliveries:
        """Takes a request out, wherever it is; nothing if it is not in flight."""
        return self._take_out(
            lambda row: row.submission.request_id == request_id, FinishReason.CANCELLED, now
        )

    def expire(self, now: float) -> Deliveries:
        """Takes out the requests whose time is over, waiting or running."""
        if now < self._no_deadline_before:
            return []
        deliveries = self._take_out(lambda row: row.deadline <= now, FinishReason.TIMEOUT, now)
        rows = [*self._waiting, *self._running.values()]
        self._no_deadline_before = min((row.deadline for row in rows), default=math.inf)
        return deliveries

    def _take_out(
        self, which: Callable[[_Row], bool], reason: FinishReason, now: float
    ) -> Deliveries:
        leaving = [row for row in self._waiting if which(row)]
        for row in leaving:
            self._waiting.remove(row)
            row.admitted = row.decoding = row.emitted = now
        for slot, row in list(self._running.items()):
            if which(row):
                self._release(slot)
                leaving.append(row)
        return [(row.submission.request_id, row.finish(reason, now)) for row in leaving]

    def plan(self, now: float) -> Plan:
        """The next round; what it opens is running from here on."""
        closing, self._closing = tuple(self._closing), []
        self._free.extend(closing)
        self._free.sort(reverse=True)
        opening = []
        # a slot that is about to be forked from is not given away before that
        pledged = {row.source for row in self._running.values() if row.leader}
        while self._waiting and (free := [slot for slot in self._free if slot not in pledged]):
            row = self._waiting.popleft()
            row.admitted = row.decoding = row.emitted = now
            if row.submission.draft_length and row.decides and self._lengths:
                beside = min(self._slots, len(self._running) + len(self._waiting) + 1)
                if not self._lengths.worth_watching(beside):
                    row.stay_unwatched()
            slot = self._find_leader(row, free)
            self._free.remove(slot)
            self._running[slot] = self._last[slot] = row
            opening.append((slot, row.submission))
        forks, drafts, chunks, budget = [], {}, {}, self._chunk
        chosen: dict[int, int] = {}
        lookups: dict[int, Lookup] = {}
        rounds = MOST_ROUNDS
        # dictionaries keep the order of admission: the first to come prefills first
        for slot, row in self._running.items():
            if row.leader is not None:
                if row.leader.to_prefill:
                    continue
                forks.append((slot, row.source))
                row.prompt_logprobs = list(row.leader.prompt_logprobs)
                row.leader, row.cached = None, row.to_prefill
                row.begin_decoding(now)
            if row.to_prefill > row.consuming:
                if budget:
                    size = min(budget, LONGEST_CHUNK, row.to_prefill - row.consuming)
                    chunks[slot] = size
                    row.consuming += size
                    budget -= size
            elif row.submission.max_tokens:
                submission = row.submission
                drafts[slot] = submission.draft_length
                if row.decides and self._lengths and not row.entered:
                    row.entered = True
                    most, longest = submission.draft_length, submission.lookup_length
                    self._lengths.enter(slot, most, longest)
        if self._lengths:
            if drafts:
                places = sum(self._running[slot].places for slot in drafts)
                self._lengths.lie_behind(places / len(drafts))
            if self._lengths.rows:
                fixed = [n for slot, n in drafts.items() if not self._running[slot].decides]
                left = max(self._running[slot].left for slot in drafts)
                chosen, lookups, rounds = self._lengths.plan(fixed, bool(chunks), left)
                drafts.update(chosen)
            for slot in drafts:
                if self._running[slot].stays_plain:
                    chosen[slot] = 0
        if self._p_min is not None:
            p_min = self._p_min
        else:
            omits = self._lengths and any(drafts.values())
            p_min = self._lengths.p_min(len(drafts)) if self._lengths and omits else 0.0
        rows = {slot: self._running[slot] for slot in (*drafts, *chunks)}
        if self._long_calls and any(row.awaited for row in rows.values()):
            rounds = 1
        patience = min((row.patience_s for row in rows.values()), default=math.inf)
        span = max(SPAN_S, min(patience, LONGEST_SPAN_S, self._no_deadline_before - now))
        return Plan(
            close=closing,
            open=tuple(opening),
            forks=tuple(forks),
            drafts=drafts,
            chunks=chunks,
            chosen=chosen,
            lookups=lookups,
            rows=rows,
            rounds=rounds,
            span_s=span,
            p_min=p_min,
        )

    def _find_leader(self, row: _Row, free: list[int]) -> int:
        """Decides from whom a row takes over its prompt, if from anyone; returns its slot.

        A free slot that holds the prompt itself is the best one.
        """
        if row.to_prefill:
            for slot in [*free, *self._running]:
                other = self._last.get(slot)
                if other is None or not other.may_lead(row):
                    continue
                if other.leader and not other.leader.to_prefill and slot not in free:
                    row.leader, row.source = other.leader, other.source  # as it will this round
                    return free[-1]
                if not (other.to_prefill and (slot in free or other.leader)):
                    row.leader, row.source = other, slot
                    return slot if slot in free else free[-1]
        return free[-1]

    def apply(
        self,
        plan: Plan,
        results: Mapping[int, RowResult],
        now: float,
        seconds: float | None = None,
        elapsed: Sequence[float] = (),
    ) -> Deliveries:
        """Takes a plan's results, how long it took with the host's part, and each of its rounds by
        itself, if that is known; finished rows leave and their slots are freed.

        A plan may be applied after the next one has been made: what came for rows that have left
        meanwhile is nobody's.
        """
        deliveries: Deliveries = []
        gone = self.gone(plan)
        if self._lengths and plan.drafts and self._lengths.over(plan.drafts, len(elapsed) or 1):
            # a slot may be another row's by now: the one that left has a number below 0
            them = {~slot if slot in gone else slot: results[slot] for slot in plan.drafts}
            left = [~slot for slot in gone if slot in plan.chosen]
            self._lengths.observe(them, elapsed, None if plan.chunks else seconds, left)
        for slot, size in plan.chunks.items():
            if slot in gone:
                continue
            row = self._running[slot]
            row.to_prefill -= size
            row.consuming -= size
            if slot in results:
                row.prompt_logprobs += results[slot].logprobs
            if not row.to_prefill:
                row.begin_decoding(now)
        for slot, row in list(self._running.items()):
            events: list[Event] = []
            # a row that forks has consumed its prompt before this round
            if not row.started and not row.to_prefill:
                events += row.start(now)
            if slot in results and slot not in plan.chunks and slot not in gone:
                if row.first_byte is None:  # in the first of these rounds
                    row.first_byte = now - sum(elapsed[1:])
                events += row.take(results[slot], now, self.per_byte[row.submission.mode])
            deliveries += [(row.submission.request_id, event) for event in events]
            if events and isinstance(events[-1], Finished):
                self._release(slot)
        return deliveries

    def gone(self, plan: Plan) -> set[int]:
        """Slots of a plan whose rows have left since it was made."""
        return {slot for slot, row in plan.rows.items() if self._running.get(slot) is not row}

    def fail_round(self, plan: Plan, message: str) -> Deliveries:
        """Ends the rows of a round with an error."""
        return self.fail(sorted(plan.rows.keys() - self.gone(plan)), message)

    def fail(self, slots: list[int], message: str) -> Deliveries:
        """Ends the rows of these slots with an error."""
        deliveries: Deliveries = []
        for slot in slots:
            if slot in self._running:
                request_id = self._running[slot].submission.request_id
                deliveries.append((request_id, Failed(message)))
                self._release(slot)
                del self._last[slot]
        return deliveries

    def fail_all(self, message: str) -> Deliveries:
        """Ends everything in flight with an error."""
        deliveries = self.fail(list(self._running), message)
        deliveries += [(row.submission.request_id, Failed(message)) for row in self._waiting]
        self._waiting.clear()
        return deliveries

    def _release(self, slot: int) -> None:
        gone = self._running.pop(slot)
        self._closing.append(slot)
        if self._lengths:
            self._lengths.leave(slot)
        for row in self._running.values():
            if row.leader is gone and gone.to_prefill:
                row.leader = None
