"""A name for every request before anything of it is looked at: the header's, or a drawn one.

It goes out with every answer; the log has it from here too, and the `traceparent` of whoever traces
requests across services.
"""

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import REQUEST_ID
from server.schemas import REQUEST_ID_PATTERN

_TRACEPARENT = r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"

traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""Of the request that is being handled, if it has one."""

logger = logging.getLogger(__name__)


def draw_id() -> str:
    return uuid.uuid4().hex


def given_id(scope: Scope) -> str | None:
    """The id in the header, if it is one."""
    header = Headers(scope=scope).get(REQUEST_ID)
    return header if header and re.fullmatch(REQUEST_ID_PATTERN, header) else None


def id_of(scope: Scope) -> str:
    return given_id(scope) or draw_id()


class RequestIds:
    """ASGI middleware around all others: `state.request_id`, on the answer as well.

    A body may name another id; whoever reads it puts that in its place.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = id_of(scope)
        parent = Headers(scope=scope).get("traceparent", "")
        traceparent.set(parent if re.fullmatch(_TRACEPARENT, parent) else None)
        began, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = state["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            fields = {
                "request_id": state["request_id"],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": time.perf_counter() - began,
            }
            logger.debug("answered", extra=fields)
