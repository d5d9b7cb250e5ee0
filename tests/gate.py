"""A gate before the rounds of a decoder, so that requests are in flight for as long as a test says.

While it is shut the engine's thread stands before its next round.  What has been begun ahead of
that is not read either, so nothing that is in flight ends.
"""

import threading
from typing import Any

from patience import wait_until_set

from specdec.decoder import Decoder


class Gate:
    """Open at first; a receiver that shuts it does so before the engine's next round."""

    def __init__(self, decoder: Decoder[Any]) -> None:
        self.rounds = 0
        """Calls that have come to the gate."""
        self._way = threading.Event()
        self._way.set()
        self._whole = decoder.begin
        decoder.begin = self._begin  # type: ignore[method-assign]

    def shut(self) -> None:
        self._way.clear()

    def open(self) -> None:
        self._way.set()

    def _begin(self, *arguments: Any) -> Any:
        self.rounds += 1
        wait_until_set(self._way)
        return self._whole(*arguments)
