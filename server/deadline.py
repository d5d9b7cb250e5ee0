"""How long a client may leave unread what waits for it.

Knows neither what is sent nor to whom: a connection that takes nothing is given up.
"""

import asyncio
import logging
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

PIECE = 1 << 16
"""Bytes of a body that are sent at a time: a server waits between two, not within one."""


class ReadDeadline:
    """ASGI middleware that ends a response when a part of it has waited for `seconds`.

    What fits into the socket's buffers never waits; a request that decodes for it is cancelled.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        late = False

        async def send_in_time(message: Message) -> None:
            nonlocal late
            for piece in _pieces(message):
                try:
                    async with asyncio.timeout(self._seconds):
                        await send(piece)
                except TimeoutError:
                    late = True
                    raise

        try:
            await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not late:
                raise
            logger.warning(
                "a client has not taken in a part of its answer in %g s; the rest is dropped",
                self._seconds,
                extra={"request_id": scope.get("state", {}).get("request_id")},
            )


def _pieces(message: Message) -> Iterator[Message]:
    """A message, the body of a large one in parts."""
    body = message.get("body", b"")
    last = max(0, len(body) - 1) // PIECE * PIECE
    for begin in range(0, last, PIECE):
        yield {**message, "body": body[begin : begin + PIECE], "more_body": True}
    yield {**message, "body": body[last:]} if last else message
