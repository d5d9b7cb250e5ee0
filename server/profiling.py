"""What rounds cost here, measured before the first request: rows by draft lengths."""

import logging
import time
from itertools import pairwise
from statistics import median
from typing import Any

from server.draft_lengths import LENGTHS
from specdec.decoder import Decoder, Job, run_rounds
from specdec.sampling import SamplingParams

logger = logging.getLogger(__name__)

TURNS, SETTLING, TIMED = 3, 4, 5
"""Rounds of each kind come in so many turns, of some that are not timed and some that are: after
rounds of another length the first few take up to twice as long."""
PLACE = 128
"""Rows are measured with about so many bytes behind them."""
_ROUNDS = TURNS * (SETTLING + TIMED)
LONGEST_S = 20.0
"""No further row counts are measured after so long: what was measured is extrapolated."""


def measure_costs(decoder: Decoder[Any]) -> dict[tuple[int, int], float]:
    """Seconds of a round of b rows with γ drafts each, for some b up to all slots.

    Of none where the context is too short to time one.

    Uses every slot: for use before serving.
    """
    assert decoder.drafter is not None
    # as many lengths as a row has room for, every draft accepted
    lengths, needed = [], 0
    for gamma in LENGTHS:
        needed += _ROUNDS * (gamma + 1)
        if gamma > decoder.drafter.longest or needed >= decoder.context:
            break
        lengths.append(gamma)
    if not lengths:
        return {}
    output = _ROUNDS * sum(gamma + 1 for gamma in lengths)
    prompt = b"\n" * min(PLACE, decoder.context - output)
    began = time.monotonic()
    measured: dict[tuple[int, int], float] = {}
    for rows in _row_counts(decoder.slots):
        if time.monotonic() - began > LONGEST_S:
            break
        for slot in range(rows):
            params = SamplingParams(temperature=1.0)
            decoder.open(slot, Job(prompt, output, params, seed=slot, draft_length=lengths[-1]))
            while size := min(128, decoder.to_prefill(slot)):
                decoder.step({}, {slot: size})
        # in turns, so that what else the machine does falls on all lengths alike
        seconds: dict[int, list[float]] = {gamma: [] for gamma in lengths}
        for _ in range(TURNS):
            for gamma in lengths:
                seconds[gamma] += _seconds(decoder, dict.fromkeys(range(rows), gamma))
        measured |= {(rows, gamma): median(values) for gamma, values in seconds.items()}
        for slot in range(rows):
            decoder.close(slot)
        logger.info(
            "a round of %d rows: %.2f ms plain, %.2f ms with %d drafts each",
            rows,
            measured[rows, 0] * 1e3,
            measured[rows, lengths[-1]] * 1e3,
            lengths[-1],
        )
    return measured


def _row_counts(slots: int) -> list[int]:
    counts = [1 << n for n in range(slots.bit_length())]
    return counts if counts[-1] == slots else [*counts, slots]


def _seconds(decoder: Decoder[Any], drafts: dict[int, int]) -> list[float]:
    """From the end of a round to the end of the next, each begun when the engine would."""
    ends = [time.perf_counter() for _ in run_rounds(decoder, drafts, SETTLING + TIMED)]
    return [end - before for before, end in pairwise(ends[SETTLING - 1 :])]
