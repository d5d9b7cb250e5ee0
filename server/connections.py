"""Which connections are open, and which of them have to go when there are too many.

Knows nothing of what travels on them.
"""

import resource
from typing import Protocol

RESERVED = 8
"""Connections that are kept for requests to come when all others have one in flight."""


class GivesWay(Protocol):
    def give_way(self) -> None:
        """Ends a connection that has no request in flight."""


class Connections:
    """At most `most`: one more, and that which has waited longest for a request has to go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[GivesWay, None] = {}
        """For a request, the one that began to wait first in front."""
        self._busy: set[GivesWay] = set()
        """With a request in flight."""

    @property
    def full(self) -> bool:
        """Whether so many requests are in flight that only those that must be are answered."""
        return len(self._busy) > self._most - RESERVED

    def wait(self, connection: GivesWay) -> None:
        self._busy.discard(connection)
        self._waiting[connection] = None
        if len(self._waiting) + len(self._busy) > self._most:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.give_way()

    def work(self, connection: GivesWay) -> None:
        self._waiting.pop(connection, None)
        self._busy.add(connection)

    def leave(self, connection: GivesWay) -> None:
        self._waiting.pop(connection, None)
        self._busy.discard(connection)


def most_connections(asked: int | None) -> int:
    """How many this process may have open: half of its file descriptors, the rest being for files
    and for connections that are not accepted yet.  ValueError if more is asked for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        descriptors = 2**20
    if asked is None:
        return max(2 * RESERVED, min(4096, descriptors // 2))
    if 2 * asked > descriptors:
        raise ValueError(
            f"{asked} connections need {2 * asked} file descriptors, "
            f"and this process may have {descriptors} (ulimit -n)"
        )
    return asked
