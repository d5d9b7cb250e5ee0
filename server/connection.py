"""A client's connection: uvicorn's protocol for h11, with bounds.

A head has so many bytes and so many seconds; what is wrong before there is a request is answered in
the envelope of all errors.  A client that shuts its side down gets its answer, one that is gone
frees its slot.  Knows no routes but those that answer while the server is full.
"""

import json
import logging
import socket
import sys
from asyncio import Transport
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from server.connections import Connections
from server.errors import REQUEST_ID, ApiError, Unavailable, respond
from server.request_id import draw_id, id_of

MOST_HEAD_BYTES = 2**16
"""Of a request's line and headers together, of its trailers, and of a chunk's first line."""

OPEN_PATHS = ("/health", "/ready")
"""What is answered on these."""

LINGER_S = 5.0
"""How long a client that was refused may go on sending: closed at once, it would not read why."""

PROBE_S = 5.0
"""How often a client that has shut its side down is asked whether it still reads."""

GLANCE_S = 0.25
"""How often it is looked whether it said no."""

OLD_CLIENT_S = 1.0
"""How long a plain answer to a client of HTTP/1.0 may take once that has shut its side down: there
is nothing to ask it with, and proxies that speak HTTP/1.0 hang up like this."""

_PIECE = 2**14
"""Bytes that h11 gets at a time: its bound is checked between two."""


logger = logging.getLogger(__name__)
logger.setLevel(logging.ERROR)  # uvicorn warns of what is refused by name and with an id here

Refused = Callable[[ApiError, str | None], None]


class Connection(H11Protocol):
    """One client's connection.

    uvicorn's timer for idle connections is the deadline for heads as well: it runs whenever none
    has been read since the last answer, and what arrives does not stop it.
    """

    def __init__(
        self, connections: Connections, seconds: float, refused: Refused, **arguments: Any
    ) -> None:
        """`refused` is told of what never becomes a request."""
        super().__init__(**arguments)
        self.logger = logger
        self._connections = connections
        self._seconds = seconds
        self._note_refusal = refused
        self._served = cast(ASGIApp, self.app)
        self.app = cast(Any, self._answer)
        self.timeout_keep_alive = cast(int, seconds)
        self._refused = False
        """What still arrives is thrown away."""
        self._ended = False
        """The client sends no more."""

    # What asyncio calls

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(self._seconds)
        self._connections.wait(self)

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), _PIECE):
            if self._refused or self.transport.is_closing():
                return
            if self.conn.their_state in (h11.MUST_CLOSE, h11.CLOSED):
                return  # nothing counts behind a last request, as of an empty line of old clients
            self.conn.receive_data(data[begin : begin + _PIECE])
            self.handle_events()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keeps the connection open for an answer that is on its way.  TLS cannot."""
        if not self._in_flight or self.cycle.more_body or self.scheme == "https":
            return None
        if not self._ended:
            self._ended = True
            old = self.scope["http_version"] != "1.1"
            self._probe(self.loop.time() + (OLD_CLIENT_S if old else 0.0))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._connections.leave(self)

    # What uvicorn calls

    def handle_events(self) -> None:
        if self.conn.their_state is h11.IDLE:
            # empty lines in front of a request do not count, says RFC 9112; for h11 they do
            start = self.conn.trailing_data[0]
            self.conn._receive_buffer.maybe_extract_at_most(len(start) - len(start.lstrip(b"\r\n")))
        super().handle_events()
        if self._in_flight:
            self._connections.work(self)
        if self.conn.their_state is not h11.SEND_BODY and self._unread < MOST_HEAD_BYTES:
            # reading on behind a request, also one with an Upgrade, shows that its client leaves
            self.flow.resume_reading()

    def _should_upgrade(self) -> bool:
        return False  # HTTP/1.1 is all there is, and all answers say so

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        assert isinstance(error, h11.RemoteProtocolError)
        self._refuse(self._malformed(error))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_flight:
            return  # the next one was there already
        if self._ended:
            self.transport.close()
        self._close_after(self._seconds)
        self._connections.wait(self)

    def timeout_keep_alive_handler(self) -> None:
        if self._refused or self.transport.is_closing():
            self.transport.abort()  # it does not even take what it was sent
        elif self.conn.our_state is h11.IDLE and self._unread:
            message = f"the head of the request was not complete after {self._seconds:g} s"
            self._refuse(ApiError(message, None, "head_too_slow", 408))
        else:
            self.transport.close()
            self._close_after(LINGER_S)

    def shutdown(self) -> None:
        if not self._refused:
            super().shutdown()

    # Our own

    def give_way(self) -> None:
        """Ends a connection without a request; one that has asked before expects no answer."""
        if self._refused or self.transport.is_closing():
            self.transport.abort()
            return
        if self.cycle is None:
            self._tell(_too_many())
        self.transport.close()

    @property
    def _in_flight(self) -> bool:
        return not (self._refused or self.cycle is None or self.cycle.response_complete)

    @property
    def _unread(self) -> int:
        """Bytes that have arrived and are no part of a request yet."""
        return len(self.conn.trailing_data[0])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self.cycle
        if not scope["raw_path"].startswith(b"/"):  # a whole URL, as proxies are sent
            path = urlsplit(scope["raw_path"]).path or b"/"
            scope.update(raw_path=path, path=unquote(path))
        error = self._objection(scope)
        try:
            if error is None:
                await self._served(scope, receive, send)
            else:
                request_id = scope["state"]["request_id"] = id_of(scope)
                self._note_refusal(error, request_id)
                response = respond(error)
                response.headers[REQUEST_ID] = request_id
                await response(scope, receive, send)
        finally:
            if not (cycle.response_complete or cycle.disconnected):
                # uvicorn closes now, which waits for the client to read what was sent
                self._close_after(LINGER_S)

    def _objection(self, scope: Scope) -> ApiError | None:
        """Why a request is not even looked at."""
        close = {"Connection": "close"}
        if scope["http_version"] not in ("1.0", "1.1"):
            message = "the server speaks HTTP/1.1 and 1.0"
            return ApiError(message, None, "http_version_not_supported", 505, close)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            # where one begins that stands behind it is for two servers to disagree upon
            message = "a request must not have both Content-Length and Transfer-Encoding"
            return ApiError(message, None, "invalid_http", 400, close)
        if self._connections.full and scope["path"] not in OPEN_PATHS:
            return _too_many()
        return None

    def _malformed(self, error: h11.RemoteProtocolError) -> ApiError:
        # h11 quotes what it found behind a colon: nothing that a client sent is repeated
        what = str(error).partition(":")[0]
        if error.error_status_hint != 431:
            message = f"the request is not HTTP/1.1 as it should be: {what}"
            return ApiError(message, None, "invalid_http", error.error_status_hint)
        bound = f"more than {MOST_HEAD_BYTES} bytes"
        if self._in_flight:
            message = f"a chunk's first line, or the trailers, have {bound}"
            return ApiError(message, None, "invalid_http", 400)
        if b"\n" not in self.conn.trailing_data[0]:
            return ApiError(f"the request's first line has {bound}", None, "uri_too_long", 414)
        return ApiError(f"the head of the request has {bound}", None, "head_too_large", 431)

    def _refuse(self, error: ApiError) -> None:
        """Answers where no request can be read, and lets the client finish."""
        self._tell(error)
        if self._in_flight:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
        self._close_after(LINGER_S)

    def _tell(self, error: ApiError) -> None:
        given = self.cycle.scope["state"].get("request_id") if self._in_flight else None
        request_id = given or draw_id()
        self._note_refusal(error, request_id)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # an answer is on its way already
        content = json.dumps(error.envelope).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
            (REQUEST_ID.lower().encode(), request_id.encode()),
        ]
        reason = STATUS_PHRASES[error.status]
        head = h11.Response(status_code=error.status, headers=headers, reason=reason)
        for event in (head, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))

    def _close_after(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _probe(self, due: float) -> None:
        """Finds out whether a client that sends no more still reads.

        One that is gone answers whatever it is sent with a reset.  A stream sends by itself; in
        front of a plain answer it is a `100 Continue`, which every client of HTTP/1.1 skips.
        """
        if self.transport.is_closing() or not self._in_flight:
            return
        sock: socket.socket = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if self.loop.time() >= due and self.conn.our_state is h11.SEND_RESPONSE:
            if self.scope["http_version"] != "1.1":
                self.transport.abort()
                return
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(go_on))
            due += PROBE_S
        self.loop.call_later(GLANCE_S, self._probe, due)


def _too_many() -> ApiError:
    return Unavailable("too many connections are open", code="too_many_connections")
