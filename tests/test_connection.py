"""Connections as clients make and leave them, over real sockets: heads, Upgrade, half a close."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine, say
from patience import eventually
from wire import connected, exchange, on_a_socket, parts, post, read_all

from server.connection import MOST_HEAD_BYTES


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with on_a_socket(FakeEngine(say(b"abc"))) as port:
        yield port


HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def error_in(answer: bytes) -> tuple[int, str]:
    """Status and code of an error in the envelope, which has an id and ends the connection."""
    status, headers, body = parts(answer)
    (error,) = json.loads(body).values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert headers["connection"] == "close"
    return status, error["code"]


# Requests that ask for another protocol


@pytest.mark.parametrize(
    "headers",
    [
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"],
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
        ["Connection: keep-alive, Upgrade", "Upgrade: TLS/1.2, HTTP/2.0"],
        ["Upgrade: h2c"],
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upgrade_is_declined_and_the_request_answered(
    port: int, headers: list[str], chunked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    request = post({"prompt": "a"}, *headers)
    if chunked:
        head, _, body = request.partition(b"\r\n\r\n")
        length = f"Content-Length: {len(body)}".encode()
        head = head.replace(length, b"Transfer-Encoding: chunked")
        pieces = b"".join(b"1;x=y\r\n%c\r\n" % each for each in body)
        request = head + b"\r\n\r\n" + pieces + b"0\r\n\r\n"
    status, _, body = parts(exchange(port, request + HEALTH))
    assert status == 200
    answer, _, after = body.partition(b"HTTP/1.1 200 OK")
    assert json.loads(answer)["text"] == "abc"
    assert after.endswith(b'{"status":"ok"}')
    assert "upgrade" not in caplog.text.lower()


# What clients may do, and some do


def test_empty_lines_around_a_request_do_not_count(port: int) -> None:
    request = b"\r\n\r\n" + post({"prompt": "a"}) + b"\r\n"
    assert exchange(port, request * 2 + HEALTH).count(b"HTTP/1.1 200 OK") == 3


def test_nothing_counts_behind_a_last_request() -> None:
    go_on = threading.Event()

    def script(submission: Any) -> Any:
        assert go_on.wait(60)
        return say(b"abc")(submission)

    with on_a_socket(engine := FakeEngine(script)) as port, connected(port) as connection:
        connection.sendall(post({"prompt": "a"}, "Connection: close"))
        eventually(lambda: engine.submissions)
        connection.sendall(b"\r\nnonsense")
        exchange(port, HEALTH)  # by then it has arrived
        go_on.set()
        assert parts(read_all(connection))[0] == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://x/health", 200), ("https://x:1/health?a", 200), ("http://x", 404), ("*", 404)],
)
def test_a_target_may_be_a_whole_url(port: int, target: str, status: int) -> None:
    request = HEALTH.replace(b"/health", target.encode(), 1)
    assert parts(exchange(port, request))[0] == status


# Bounds of a head


def flood(port: int, start: bytes, piece: bytes, pieces: int) -> bytes:
    """The answer to `start` and many pieces, sent whether or not anything has come back."""
    with connected(port) as connection:
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(read_all(connection)))
        reader.start()
        connection.sendall(start)
        try:
            for _ in range(pieces):
                connection.sendall(piece)
        except OSError:
            pass
        reader.join()
    return received[0]


@pytest.mark.parametrize(
    ("start", "piece", "status", "code"),
    [
        (b"GET /", b"x" * 1024, 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 1024, 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"x: y\r\n" * 200, 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y\r\n " * 300, 431, "head_too_large"),
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_a_head_has_a_bound(
    port: int, start: bytes, piece: bytes, status: int, code: str, at_once: bool
) -> None:
    if at_once:
        piece *= 1000
    answer = flood(port, start, piece, 5 if at_once else 200)
    assert error_in(answer) == (status, code)
    assert parts(exchange(port, HEALTH))[0] == 200


def test_a_head_up_to_the_bound_is_read(port: int) -> None:
    filled = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    request = filled.ljust(MOST_HEAD_BYTES - 4, b"x") + b"\r\n\r\n"
    assert parts(exchange(port, request))[0] == 200


@pytest.mark.parametrize("start", [b"1;x=", b"1\r\n1\r\n0\r\nX: "])
def test_chunk_lines_and_trailers_have_a_bound(port: int, start: bytes) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = flood(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + start, b"x" * 1024, 5000)
    assert error_in(answer) == (400, "invalid_http")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_the_envelope(
    port: int, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "server"):
        answer = exchange(port, request_)
    assert error_in(answer) == (400, "invalid_http")
    assert b"secret" not in answer
    assert all(record.levelno == logging.INFO for record in caplog.records)
    (line,) = [record for record in caplog.records if record.getMessage() == "refused"]
    assert vars(line)["request_id"] == parts(answer)[1]["x-request-id"]


def test_a_coding_that_nobody_knows_is_refused_by_name(port: int) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"
    answer = exchange(port, request)
    assert error_in(answer) == (501, "invalid_http")
    assert b"Transfer-Encoding" in answer


@pytest.mark.parametrize(
    "request_", [b"PRI * HTTP/2.0\r\n\r\n", b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"]
)
def test_another_version_is_refused(port: int, request_: bytes) -> None:
    answer = exchange(port, request_)
    assert error_in(answer) == (505, "http_version_not_supported")


# Deadlines


@pytest.mark.parametrize(
    ("start", "answered"),
    [
        (b"", None),
        (b"GET /health HTTP/1.1\r\n", (408, "head_too_slow")),
        (b"G", (408, "head_too_slow")),
    ],
)
def test_a_head_has_to_come_in_time(start: bytes, answered: tuple[int, str] | None) -> None:
    with on_a_socket(FakeEngine(), client_seconds=0.3) as port, connected(port) as connection:
        began = time.monotonic()
        connection.sendall(start)
        answer = read_all(connection)
        assert time.monotonic() - began >= 0.29
        assert (error_in(answer) if answer else None) == answered


def test_a_byte_now_and_then_does_not_put_the_deadline_off() -> None:
    with on_a_socket(FakeEngine(), client_seconds=0.3) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        connection.settimeout(0.01)
        while True:  # without a deadline it would go on for ever
            try:
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
                return
            except TimeoutError:
                connection.sendall(b"x")


def test_a_connection_is_not_idle_for_ever() -> None:
    with on_a_socket(FakeEngine(), client_seconds=0.3) as port, connected(port) as connection:
        connection.sendall(HEALTH.replace(b"Connection: close\r\n", b""))
        began = time.monotonic()
        assert parts(read_all(connection))[0] == 200
        assert time.monotonic() - began >= 0.29


def test_the_rest_of_a_body_that_nobody_wants_has_an_end() -> None:
    head = b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with on_a_socket(FakeEngine(), client_seconds=0.3) as port, connected(port) as connection:
        connection.sendall(head)
        connection.settimeout(0.01)
        received = b""
        while True:
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                connection.sendall(b"x")
                continue
            except ConnectionResetError:
                break
            received += piece
            if not piece:
                break
        assert parts(received)[0] == 405


# HTTP/1.0


def test_a_stream_to_a_client_of_http_1_0_is_not_chunked(port: int) -> None:
    answer = exchange(port, post({"prompt": "a", "stream": True}, version="1.0"))
    status, headers, body = parts(answer)
    assert status == 200
    assert "transfer-encoding" not in headers
    for block in body.removesuffix(b"\n\n").split(b"\n\n"):
        assert block.startswith(b"data: {")
