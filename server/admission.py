"""Who may come in: a bounded queue, and how long it takes to drain.

Plain Python with a clock that is passed in.  Counts the requests in flight, a choice each, from
what the service tells; knows no engine.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice

from server.errors import Impossible, Overloaded

WINDOW_S = 30.0
"""Requests that ended longer ago say nothing of how fast the queue drains now."""


class Admission:
    """The requests in flight in the order they came, those beyond the engine's slots waiting.

    At most `max_waiting` may wait, with prompts of `max_waiting_bytes` together.  None is in
    flight for longer than `longest_s`.
    """

    def __init__(self, max_waiting: int, max_waiting_bytes: int, longest_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._longest_s = longest_s
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._ends: deque[float] = deque()
        self._busy_since = 0.0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def check(self, sizes: Sequence[int], slots: int, now: float) -> None:
        """Overloaded if requests with prompts of these sizes, all of them, find no room now;
        Impossible if they never can."""
        if not self._fits(sizes[slots:]):
            message = "prompt, n: more than the queue can ever take at once"
            raise Impossible(message, "prompt")
        waiting_bytes = self._bytes - sum(islice(self._sizes.values(), slots))
        waiting = max(0, len(self) - slots)
        free = max(0, slots - len(self))
        if not self._fits(sizes[free:], waiting, waiting_bytes):
            message = f"{waiting} requests wait already; try again later"
            raise Overloaded(message, self._retry_after(waiting, now))

    def _fits(self, sizes: Sequence[int], waiting: int = 0, waiting_bytes: int = 0) -> bool:
        within_bytes = waiting_bytes + sum(sizes) <= self._max_waiting_bytes
        return not sizes or (waiting + len(sizes) <= self._max_waiting and within_bytes)

    def _retry_after(self, waiting: int, now: float) -> int:
        """Whole seconds until those that wait now will have left, as fast as others did lately."""
        self._forget(now)
        measured_s = min(now - self._busy_since, WINDOW_S)
        seconds = waiting * measured_s / max(1, len(self._ends))
        return max(1, math.ceil(min(seconds, self._longest_s)))

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0] < now - WINDOW_S:
            self._ends.popleft()

    def enter(self, request_id: str, size: int, now: float) -> None:
        if not self._sizes:
            self._busy_since = now
            self._ends.clear()
        self._sizes[request_id] = size
        self._bytes += size

    def leave(self, request_id: str, now: float) -> None:
        self._bytes -= self._sizes.pop(request_id)
        self._ends.append(now)
        self._forget(now)
