"""From a flight to a client: output as server-sent events, in whatever form an endpoint has.

Text goes out through an incremental decoder, which holds back at most the 3 bytes of a character
that is not complete.
"""

import asyncio
import base64
import codecs
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.errors import ApiError
from server.flight import Flight, error_of
from server.messages import Failed, Finished, Progress

KEEP_ALIVE_S = 5.0

KEEP_ALIVE = b": keep-alive\n"
"""A comment.  Some clients take an empty line behind it for the end of an event, an empty one."""


logger = logging.getLogger(__name__)


class OutputEncoder:
    """Pieces of output as `text` and `bytes` that add up to the whole of each."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def encode(self, output: bytes, final: bool = False) -> dict[str, str]:
        return {
            "text": self._decoder.decode(output, final),
            "bytes": base64.b64encode(output).decode(),
        }


def server_sent_event(data: Mapping[str, object]) -> bytes:
    """One event on the wire; JSON in ASCII has no line ends that could break it.

    ValueError for a number that JSON does not have.
    """
    return f"data: {json.dumps(data, allow_nan=False)}\n\n".encode("ascii")


class StreamForm(Protocol):
    """What an endpoint's streams look like, event by event."""

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        """More output of a choice, or its end."""

    def error(self, error: ApiError) -> Iterator[bytes]:
        """The end of the stream for which there is an error to blame."""

    def end(self) -> Iterator[bytes]:
        """The end of the stream after that of every choice."""


class EventStream(StreamingResponse):
    """The events of a flight; those of a choice come `interval` seconds apart at least.

    The last comes without delay.  After `keep_alive_s` of silence a comment is sent, which tells
    proxies and clients that the connection lives, and this server whether the client does.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        flight: Flight,
        form: StreamForm,
        interval: float = 0.0,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._flight = flight
        self._form = form
        self._interval = interval
        self._keep_alive_s = keep_alive_s
        # proxies that collect a response before they pass it on would undo the streaming
        unbuffered = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._pieces(), headers=unbuffered)

    async def _pieces(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        not_before = loop.time() if self._interval else None
        left = self._flight.choices
        while left:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    events = await self._flight.next_events(not_before)
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            lines: list[bytes] = []
            for choice, event in events:
                if isinstance(event, Failed):
                    lines += self._form.error(error_of(event))
                    yield b"".join(lines)
                    return
                try:
                    lines += self._form.piece(choice, event)
                except Exception:
                    logger.exception("a stream's output cannot be told")
                    lines += self._form.error(ApiError("the server made a mistake"))
                    yield b"".join(lines)
                    return
                left -= isinstance(event, Finished)
            yield b"".join(lines)
            if self._interval:
                not_before = loop.time() + self._interval
        for line in self._form.end():
            yield line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # starlette's own watch depends on the server's ASGI version, and may see a client go only
        # when there is something to send
        async with self._flight.cancelled_without_client(receive):
            await self.stream_response(send)
