"""Stop strings in a stream of bytes, found across any borders and never emitted partly."""

from collections.abc import Sequence


class StopMatcher:
    """Holds back bytes while they may still turn out to begin a stop string.

    The match that is complete first ends the stream, of several the longest: so it is found alike
    however the stream is cut.  A match that would leave less than `least` bytes of output does not
    count.  With `include` the match itself is output too.

    >>> matcher = StopMatcher([b"END"])
    >>> matcher.feed(b"the E"), matcher.feed(b"NDING")
    ((b'the ', False), (b'', True))
    """

    def __init__(self, stops: Sequence[bytes], least: int = 0, include: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string of no bytes stops everything")
        self._stops = tuple(stops)
        self._least = least
        self._include = include
        self._released = 0
        self._held = b""
        self.surplus = 0
        """Bytes fed behind the end of the match: never part of anything."""

    def feed(self, content: bytes) -> tuple[bytes, bool]:
        """Bytes that are certain to be output, and whether a stop string has been found."""
        if not self._stops:
            return content, False
        text = self._held + content
        starts = [(text.find(stop, self._first_start(stop)), len(stop)) for stop in self._stops]
        hits = [(start + size, start) for start, size in starts if start >= 0]
        if hits:
            end, start = min(hits)
            self.surplus = len(text) - end
            self._held = b""
            output = text[: end if self._include else start]
            self._released += len(output)
            return output, True
        keep = self._pending(text)
        self._held = text[len(text) - keep :]
        self._released += len(text) - keep
        return text[: len(text) - keep], False

    def flush(self) -> bytes:
        """What was held back, for a stream that ended otherwise."""
        held, self._held = self._held, b""
        return held

    def _first_start(self, stop: bytes) -> int:
        """Where in what is held and fed a match that counts may begin."""
        kept = len(stop) if self._include else 0
        return max(0, self._least - self._released - kept)

    def _pending(self, text: bytes) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for size in range(min(max(map(len, self._stops)) - 1, len(text)), 0, -1):
            end = text[-size:]
            for stop in self._stops:
                begins = len(stop) > size and stop.startswith(end)
                if begins and len(text) - size >= self._first_start(stop):
                    return size
        return 0
