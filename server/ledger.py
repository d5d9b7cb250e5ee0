"""What rounds took and gave, added up where they happen.

A round may be over in 0.2 ms, so entering one costs a few list operations and what can wait for a
reader does.  Plain Python, no clock, no tensors.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import sub
from typing import NamedTuple

from server.memory import GpuMemory
from server.messages import Mode
from server.round_costs import RoundCosts
from server.tally import Tally, buckets, per_byte_tallies
from specdec.config import LONGEST_DRAFT
from specdec.round import RowResult, Seconds

PHASES = ("draft", "verify", "prefill", "accept", "host")
"""Parts of a round: drafting; the pass of the model, called prefill where it consumes prompt; all
from the byte rule on; what the host adds."""

BOUNDS = buckets(10e-6, 1.0)


def _tallies() -> dict[str, Tally]:
    return {phase: Tally(BOUNDS) for phase in PHASES}


@dataclass(frozen=True)
class Figures:
    """Totals since start, and what is held at the moment.

    `draft_lengths` counts the rounds of rows in mode auto by how many drafts were verified.
    `decode_s` is what rounds took that only decoded, `base_s` what the same bytes would have by
    plain rounds at the same pace, as estimated from what drafts add to a round; both 0 where costs
    were not measured.
    """

    phases: Mapping[str, Tally] = field(default_factory=_tallies)
    per_byte: Mapping[Mode, Tally] = field(default_factory=per_byte_tallies)
    """Seconds per byte of output, a round's time shared among its bytes."""
    draft_lengths: tuple[int, ...] = (0,) * (LONGEST_DRAFT + 1)
    decode_s: float = 0.0
    base_s: float = 0.0
    places_held: int = 0
    """Of all slots' caches."""
    gpu: GpuMemory | None = None
    pid: int | None = None
    """The engine's process."""


class _Decoded(NamedTuple):
    """Of rounds of so many rows that only decoded: what they took, their number and in how many a
    prophet drafted; of the rows, rounds of one each, bytes, drafts that a prophet made, rounds
    with drafts that were looked up, and those drafts."""

    seconds: float = 0.0
    rounds: int = 0
    drafting: int = 0
    tries: int = 0
    size: int = 0
    made: int = 0
    lookups: int = 0
    looked_up: int = 0


_NOTHING = _Decoded()


class Ledger:
    """One engine's rounds."""

    def __init__(self, costs: RoundCosts | None) -> None:
        self._costs = costs
        self._phases = _tallies()
        self._draft, self._verify, self._prefill, self._accept, self._host = self._phases.values()
        self._lengths = [0] * (LONGEST_DRAFT + 1)
        self._decode_s = self._base_s = 0.0
        self._decoded: dict[int, _Decoded] = {}
        """By the number of rows that decoded beside one another."""
        self._priced: dict[int, _Decoded] = {}

    def enter(
        self,
        results: Mapping[int, RowResult],
        chosen: Collection[int],
        consumes: bool,
        seconds: float,
        spent: Seconds,
        gone: Collection[int] = (),
        elapsed: Sequence[float] = (),
        drafting: int = 0,
    ) -> None:
        """Rounds took `seconds` on the host's clock, of which so many were `spent` on their parts;
        and each by itself, if that is known.  In `drafting` of them drafts were wanted.

        `chosen` are the slots of rows that left their draft lengths open; `consumes` tells that
        some rows consumed prompt; what came for rows that are `gone` is nobody's.
        """
        rounds = len(elapsed) or 1
        draft, verify, accept = spent
        if verify:
            host = seconds - verify - accept
            if draft and drafting:
                self._draft.observe(draft / drafting, drafting)
                host -= draft
            (self._prefill if consumes else self._verify).observe(verify / rounds, rounds)
            if accept:  # a CUDA graph is one piece
                self._accept.observe(accept / rounds, rounds)
            self._host.observe(max(0.0, host) / rounds, rounds)
        lookups = looked_up = 0
        for slot in chosen:
            if slot in gone:
                continue
            result = results[slot]
            if not result.drafted:
                self._lengths[0] += len(result.rounds)
                continue
            for tried, times in result.tally.items():
                self._lengths[tried.drafted] += times
                if tried.tier >= 0:
                    lookups += times
                    looked_up += times * tried.drafted
        if self._costs and results and not consumes:
            took = sum(elapsed) if elapsed else seconds
            self._decode_s += took
            made = tries = size = 0
            for slot, result in results.items():
                if slot not in gone:
                    made += result.drafted
                    tries += len(result.tries) or 1
                    size += len(result.output)
            if made and not drafting:  # a CUDA graph tells nothing, and drafts in each round
                drafting = rounds
            if made == looked_up or len(results) == 1:  # a round's drafts are of one kind
                drafting = max(0, drafting - lookups)
            # a new one each time: who reads it on another thread finds all of a call or nothing
            old = self._decoded.get(len(results), _NOTHING)
            self._decoded[len(results)] = _Decoded(
                old.seconds + took,
                old.rounds + rounds,
                old.drafting + drafting,
                old.tries + tries,
                old.size + size,
                old.made + made - looked_up,
                old.lookups + lookups,
                old.looked_up + looked_up,
            )

    def figures(
        self, per_byte: Mapping[Mode, Tally], places_held: int, gpu: GpuMemory | None, pid: int
    ) -> Figures:
        """From any thread, but always the same: prices what has come since the last call."""
        if self._costs:
            for rows, decoded in self._decoded.copy().items():
                before = self._priced.get(rows, _NOTHING)
                self._base_s += _base_seconds(
                    self._costs, rows, _Decoded(*map(sub, decoded, before))
                )
                self._priced[rows] = decoded
        return Figures(
            {phase: tally.snapshot() for phase, tally in self._phases.items()},
            {mode: tally.snapshot() for mode, tally in per_byte.items()},
            tuple(self._lengths),
            self._decode_s,
            self._base_s,
            places_held,
            gpu,
            pid,
        )


def _base_seconds(costs: RoundCosts, rows: int, decoded: _Decoded) -> float:
    """What plain rounds would have taken for as many bytes.

    They are held against those that there were: how much longer drafts make a round is known better
    than what a machine's rounds take at the moment.
    """
    if not decoded.tries:
        return 0.0
    added = 0.0
    if decoded.drafting:
        made = decoded.made / (decoded.drafting * rows)
        added += decoded.drafting / decoded.rounds * costs.added(rows, made)
    if decoded.lookups:
        length = round(decoded.looked_up / decoded.lookups)
        added += decoded.lookups / decoded.rounds * costs.lookup_added(rows, length)
    return decoded.seconds / (1 + added) * decoded.size / decoded.tries
