"""The server on a socket of this machine, and bytes to and from it as they are."""

import gc
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fake_engine import FakeEngine, app_of

from server.listening import listen
from server.process import configured
from server.settings import Settings

PATIENCE_S = 60
"""How long a test waits for what has to come."""


@contextmanager
def on_a_socket(engine: FakeEngine, **settings: Any) -> Iterator[int]:
    """The port of a server with this engine, on a thread of its own."""
    app = app_of(engine, **settings)
    config = configured(app, Settings.model_validate({"log_level": "warning", **settings}))
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    (listener,) = listen("127.0.0.1", 0, config.backlog)
    port: int = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while b"200 OK" not in exchange(port, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n", lines=1):
            pass
        yield port
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        gc.collect()
    assert not thread.is_alive()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def post(fields: dict[str, Any], *headers: str, version: str = "1.1") -> bytes:
    body = json.dumps(fields).encode()
    lines = [f"POST /generate HTTP/{version}", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    while piece := connection.recv(2**16):
        received += piece
    return received


def exchange(port: int, sent: bytes, lines: int | None = None) -> bytes:
    """What comes back until the server closes, or so many lines of it."""
    with connected(port) as connection:
        connection.sendall(sent)
        if lines is None:
            return read_all(connection)
        with connection.makefile("rb") as answer:
            return b"".join(answer.readline() for _ in range(lines))


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and the rest."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body
