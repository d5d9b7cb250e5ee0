"""Counts by bucket: a histogram that takes many samples of one value at once.

Belongs to one thread, so it needs no lock; a snapshot may be taken from any.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

from server.messages import Mode


def buckets(low: float, high: float) -> tuple[float, ...]:
    """1, 2, 5, 10, ... between two bounds in seconds, both included."""
    steps = (float(f"{digit}e{power}") for power in range(-5, 4) for digit in (1, 2, 5))
    return tuple(step for step in steps if low <= step <= high)


@dataclass
class Tally:
    """How many samples lie in each bucket, the last being all above the bounds, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def snapshot(self) -> "Tally":
        return Tally(self.bounds, self.counts.copy(), self.total)


def per_byte_tallies() -> dict[Mode, Tally]:
    """Of seconds per byte of output."""
    return {mode: Tally(buckets(50e-6, 5.0)) for mode in Mode}


def histogram(
    name: str, text: str, label: str, tallies: Mapping[str, Tally]
) -> HistogramMetricFamily:
    """The tallies as one histogram of Prometheus, a label value each."""
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, tally in tallies.items():
        bounds = [*map(str, tally.bounds), "+Inf"]
        family.add_metric(
            (value,), list(zip(bounds, accumulate(tally.counts), strict=True)), tally.total
        )
    return family
