"""What rounds cost here, measured before the first request: rows by draft lengths."""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from server.draft_lengths import LENGTHS, LOOKUP_LENGTHS
from server.round_costs import Growth, RoundCosts
from specdec.decoder import LONGEST_CHUNK, Decoder, Job, run_rounds
from specdec.lookup import NO_LOOKUP, TIERS, Lookup
from specdec.sampling import SamplingParams

logger = logging.getLogger(__name__)

TURNS, TIMED = 3, 6
"""Rounds of each kind come in so many turns, of so many that are timed."""
SETTLING = 24
"""Those of the first so many places are not, two rounds at least: behind rounds of another length
they take up to twice as long."""
PLACE = 128
"""Rows are measured with about so many bytes behind them."""
FAR, FEW = 1024, (0, 1, 5)
"""And with so many, in rounds of some draft lengths: what there is behind rows takes time too."""
LONGEST_S = 20.0
"""No further row counts are measured after so long: what was measured is extrapolated."""

_Kind = tuple[int, bool]
"""Of a round: how many drafts, and whether they are looked up instead of drafted by the prophet."""


def measure_costs(decoder: Decoder[Any], longest_lookup: int) -> RoundCosts | None:
    """What rounds of b rows with γ drafts each take, for some b up to all slots: of drafts of the
    prophet's, if there is one, and of up to `longest_lookup` that are looked up.

    None where nothing can be drafted, or the context is too short to time it.

    Uses every slot: for use before serving.
    """
    kinds = _kinds(decoder, longest_lookup)
    if not any(gamma for gamma, _ in kinds):
        return None
    began = time.monotonic()
    drafted: dict[tuple[int, int], float] = {}
    looked_up: dict[tuple[int, int], float] = {}
    growth: dict[tuple[int, int], float] = {}
    # what a prophet drafts and what is looked up is verified alike
    known = any(gamma and not looks for gamma, looks in kinds)
    few = [
        (gamma, looks) for gamma, looks in kinds if gamma in FEW and not (gamma and looks and known)
    ]
    room = decoder.context - max(_output(gamma) for gamma, _ in kinds)
    near, far = min(PLACE, room), min(FAR, room)
    for rows in _row_counts(decoder.slots):
        if time.monotonic() - began > LONGEST_S:
            break
        seconds = _measure(decoder, rows, {near: kinds} | ({far: few} if far >= 2 * near else {}))
        for gamma, looks in kinds:
            (looked_up if looks else drafted)[rows, gamma] = seconds[near, gamma, looks]
        for gamma, looks in few if far >= 2 * near else ():
            longer = seconds[far, gamma, looks] - seconds[near, gamma, looks]
            # which more places to verify do not make less
            growth[rows, gamma] = max(longer / (far - near), growth.get((rows, 0), 0.0))
        dearest = max(kinds, key=lambda kind: (kind[0], not kind[1]))
        logger.info(
            "a round of %d rows: %.2f ms plain, %.2f ms with %d drafts each%s",
            rows,
            seconds[near, 0, False] * 1e3,
            seconds[near, *dearest] * 1e3,
            dearest[0],
            " that are looked up" if dearest[1] else "",
        )
    return RoundCosts(drafted, looked_up, Growth(near, growth))


def _kinds(decoder: Decoder[Any], longest_lookup: int) -> list[_Kind]:
    """As many as a row has room for with every draft accepted, short ones first."""
    longest = decoder.drafter.longest if decoder.drafter else 0
    kinds = [(gamma, False) for gamma in LENGTHS if gamma <= longest]
    kinds += [(gamma, True) for gamma in LOOKUP_LENGTHS if gamma <= longest_lookup]
    return [kind for kind in kinds if _output(kind[0]) < decoder.context]


def _output(gamma: int) -> int:
    """Bytes of output that a row may get while rounds of a kind are timed."""
    return (_settling(1, gamma) + TIMED) * (gamma + 1)


def _measure(
    decoder: Decoder[Any], rows: int, kinds: Mapping[int, Sequence[_Kind]]
) -> dict[tuple[int, int, bool], float]:
    """Seconds of rounds by how many bytes are behind the rows and what kind they are of."""
    seconds: dict[tuple[int, int, bool], list[float]] = defaultdict(list)
    # a text of one byte alone: it is always found again, and all drafts are right
    byte = b"\n"
    params = SamplingParams(temperature=1.0, logit_bias=((byte[0], 1000.0),))
    # in turns, so that what else the machine does falls on all of them alike
    for places, kind in TURNS * [(each, kind) for each in kinds for kind in kinds[each]]:
        gamma, looks = kind
        watched = max(gamma for gamma, looks in kinds[places] if not looks)
        for slot in range(rows):
            decoder.open(slot, Job(byte * places, _output(gamma), params, slot, watched))
            began = slot or kind != kinds[places][0]
            if decoder.to_prefill(slot) and began:
                decoder.fork(0, slot)  # which holds the prompt, or still does
            while size := min(LONGEST_CHUNK, decoder.to_prefill(slot)):
                decoder.step({}, {slot: size})
        lookup = (gamma,) * len(TIERS) if looks else NO_LOOKUP
        seconds[places, gamma, looks] += _seconds(decoder, rows, 0 if looks else gamma, lookup)
        for slot in range(rows):
            decoder.close(slot)
    return {kind: median(values) for kind, values in seconds.items()}


def _row_counts(slots: int) -> list[int]:
    counts = [1 << n for n in range(slots.bit_length())]
    return counts if counts[-1] == slots else [*counts, slots]


def _seconds(decoder: Decoder[Any], rows: int, gamma: int, lookup: Lookup) -> list[float]:
    """From the end of a round to the end of the next, each begun when the engine would; of those
    that run several in one call, their own time."""
    slots = range(rows)
    lookups = dict.fromkeys(slots, lookup) if lookup is not NO_LOOKUP else None
    settling = _settling(rows, max(gamma, *lookup))
    seconds: list[float] = []
    before = time.perf_counter()
    for results in run_rounds(decoder, dict.fromkeys(slots, gamma), settling + TIMED, lookups):
        now = time.perf_counter()
        rounds = len(results[0].rounds)
        seconds += decoder.elapsed or ((now - before) / rounds,) * rounds
        before = now
    return seconds[settling:]


def _settling(rows: int, gamma: int) -> int:
    """Rounds that are not timed."""
    return max(2, SETTLING // (rows * (gamma + 1)))
