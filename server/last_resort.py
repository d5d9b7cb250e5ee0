"""Answers where nothing else gives one: a mistake of the server's, or its end.

uvicorn would send a line of text.
"""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, Unavailable, respond
from server.messages import SHUTTING_DOWN

logger = logging.getLogger(__name__)


class LastResort:
    """ASGI middleware that turns an exception into an error, and being cancelled too: that is what
    happens to a request whose client still sends or reads when the server has to end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
            return
        except asyncio.CancelledError:
            if begun:
                raise
            error: ApiError = Unavailable(SHUTTING_DOWN, code="draining")
        except Exception:
            request_id = scope.get("state", {}).get("request_id")
            logger.exception("the server made a mistake", extra={"request_id": request_id})
            error = ApiError("the server made a mistake")
        if not begun:
            await respond(error)(scope, receive, send)
