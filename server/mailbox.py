"""Events from other threads into the event loop, many at one ring of its bell.

Waking the loop costs more than what it then does with an event; a round brings one for every row.
"""

import asyncio
from collections import deque
from contextlib import suppress

from server.messages import Deliver, Event


class Mailbox:
    """Letters are delivered on the loop, in the order in which they were posted."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[Deliver, Event]] = deque()
        self._rung = False

    def post(self, deliver: Deliver, event: Event) -> None:
        """From any thread."""
        self._letters.append((deliver, event))
        if not self._rung:
            self._rung = True
            # a closed loop raises RuntimeError: nobody is left to tell
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        # before the letters are taken: one that is posted meanwhile rings again
        self._rung = False
        try:
            while self._letters:
                deliver, event = self._letters.popleft()
                deliver(event)
        finally:
            # a receiver that raised does not keep the others from theirs
            if self._letters:
                self._loop.call_soon(self._open)
