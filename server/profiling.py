"""What rounds cost here, measured before the first request: rows by draft lengths."""

import logging
import time
from statistics import median
from typing import Any

from server.draft_lengths import LENGTHS
from specdec.decoder import Decoder, Job
from specdec.sampling import SamplingParams

logger = logging.getLogger(__name__)

ROUNDS = 9
"""Of each kind, each behind some of its own: after a round of another length it takes longer."""
BEGUN = 3
"""Rounds for each that is timed."""
PLACE = 128
"""Rows are measured with about so many bytes behind them."""
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
        needed += BEGUN * ROUNDS * (gamma + 1)
        if gamma > decoder.drafter.longest or needed >= decoder.context:
            break
        lengths.append(gamma)
    if not lengths:
        return {}
    output = BEGUN * ROUNDS * sum(gamma + 1 for gamma in lengths)
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
        for _ in range(ROUNDS):
            for gamma in lengths:
                drafts = dict.fromkeys(range(rows), gamma)
                seconds[gamma].append(_seconds(decoder, drafts))
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


def _seconds(decoder: Decoder[Any], drafts: dict[int, int]) -> float:
    """Of a round between others, begun when the engine would."""
    if not decoder.ahead:
        for _ in range(BEGUN - 1):
            decoder.step(drafts)
        began = time.perf_counter()
        decoder.step(drafts)
        return time.perf_counter() - began
    first, second = decoder.begin(drafts), decoder.begin(drafts)
    first()
    began = time.perf_counter()
    third = decoder.begin(drafts)
    second()
    seconds = time.perf_counter() - began
    third()
    return seconds
