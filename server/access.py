"""Who may ask at all: a guard in front of every route that wants one of the operator's keys."""

import hmac
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, KeyNeeded, respond


class KeyGuard:
    """ASGI middleware that passes requests with `Authorization: Bearer KEY`.

    All paths are guarded but those that are open, those too that lead nowhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[bytes],
        is_open: Callable[[str], bool],
        refused: Callable[[ApiError, str | None], None],
    ) -> None:
        self._app = app
        self._keys = keys
        self._is_open = is_open
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and not self._is_open(scope["path"])
        if not guarded or self._knows(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
            return
        error = KeyNeeded()
        self._refused(error, scope["state"]["request_id"])
        await respond(error)(scope, receive, send)

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("latin-1")
        # all are compared, so that the time tells nothing of which one was nearly right
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(matches)
