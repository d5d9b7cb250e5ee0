"""How long the parts of a round take, without waiting for a device.

On CUDA a lap is an event in the stream, looked at once the round is over; elsewhere the host's
clock, on which torch's operations end before they return.
"""

import time
from itertools import pairwise

import torch


class Stopwatch:
    """Runs from the start on.  Laps end where `lap` is called."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.lap()

    def lap(self) -> None:
        if self._on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds of each lap; none where nobody waited for the device to come so far."""
        if self._on_cuda:
            if not self._events[-1].query():
                return []
            return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(self._events)]
        return [end - begin for begin, end in pairwise(self._times)]
