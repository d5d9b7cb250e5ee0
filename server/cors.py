"""Pages of other origins: who may ask, and what a browser may send and read.

Headers are no secret between a page and its server, so whatever a browser asks for is allowed to
those origins that may ask at all; OpenAI's client sends a dozen of its own.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from server.errors import REQUEST_ID, ApiError, respond


class OtherOrigins(CORSMiddleware):
    """Starlette's, with refusals in the envelope of all errors."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID, "Retry-After"),
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        # as plain text: "Disallowed CORS origin, method"
        message = bytes(answer.body).decode()
        refusal = respond(ApiError(message, None, "cors_refused", 400))
        refusal.headers["Vary"] = "Origin"
        return refusal
