"""What rounds took and gave, added up where they happen.

A round may be over in 0.2 ms, so entering one costs a few list operations and what can wait for a
reader does.  Plain Python, no clock, no tensors.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

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
    plain rounds, as estimated from measured costs; both 0 where costs were not measured.
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


class Ledger:
    """One engine's rounds."""

    def __init__(self, costs: RoundCosts | None) -> None:
        self._costs = costs
        self._phases = _tallies()
        self._draft, self._verify, self._prefill, self._accept, self._host = self._phases.values()
        self._lengths = [0] * (LONGEST_DRAFT + 1)
        self._decode_s = self._base_s = 0.0
        self._bytes: dict[int, int] = {}
        """Output by the number of rows that decoded beside one another."""
        self._priced: dict[int, int] = {}

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
        for slot in chosen:
            if slot in gone:
                continue
            result = results[slot]
            if not result.drafted:
                self._lengths[0] += len(result.rounds)
                continue
            for tried, times in result.tally.items():
                self._lengths[tried.drafted] += times
        if self._costs and not consumes:
            self._decode_s += sum(elapsed) if elapsed else seconds
            rows = len(results)
            size = sum(len(result.output) for slot, result in results.items() if slot not in gone)
            self._bytes[rows] = self._bytes.get(rows, 0) + size

    def figures(
        self, per_byte: Mapping[Mode, Tally], places_held: int, gpu: GpuMemory | None, pid: int
    ) -> Figures:
        """From any thread, but always the same: prices what has come since the last call."""
        if self._costs:
            for rows, size in self._bytes.copy().items():
                fresh = size - self._priced.get(rows, 0)
                self._base_s += fresh / rows * self._costs.seconds(rows, 0)
                self._priced[rows] = size
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
