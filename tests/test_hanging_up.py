"""Clients that shut their side down, and clients that are gone, over real sockets."""

import socket
import struct
import threading
import time
from typing import Any

import pytest
from fake_engine import FakeEngine, say
from patience import eventually
from wire import connected, on_a_socket, parts, post, read_all

from server.connection import OLD_CLIENT_S
from server.streaming import KEEP_ALIVE, EventStream


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_sends_no_more_gets_its_answer(stream: bool, version: str) -> None:
    go_on = threading.Event()

    def script(submission: Any) -> Any:
        assert go_on.wait(60)
        return say(b"abc")(submission)

    fields = {"prompt": "a", "stream": stream}
    with on_a_socket(engine := FakeEngine(script)) as port, connected(port) as connection:
        connection.sendall(post(fields, "Connection: close", version=version))
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: engine.submissions)
        if version == "1.1" and not stream:  # it is asked whether it still reads
            asked = b"HTTP/1.1 100 Continue\r\n\r\n"
            assert connection.recv(len(asked), socket.MSG_WAITALL) == asked
        go_on.set()
        status, _, body = parts(read_all(connection))
        assert status == 200
        assert b'"finish_reason": "stop"' in body
    assert not engine.cancelled


def test_two_requests_and_no_more_get_two_answers() -> None:
    with on_a_socket(FakeEngine(say(b"abc"))) as port, connected(port) as connection:
        connection.sendall(post({"prompt": "a"}) * 2)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).count(b'"text": "abc"') == 2


def test_a_client_that_ends_within_its_body_gets_nothing() -> None:
    engine = FakeEngine(say(b"abc"))
    with on_a_socket(engine) as port, connected(port) as connection:
        connection.sendall(post({"prompt": "a"})[:-1])
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert not engine.submissions


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_is_gone_frees_its_slot(stream: bool, version: str, reset: bool) -> None:
    engine = FakeEngine()  # of which nothing more comes
    with on_a_socket(engine) as port:
        connection = connected(port)
        connection.sendall(
            post({"prompt": "a", "request_id": "r", "stream": stream}, version=version)
        )
        eventually(lambda: engine.submissions)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        eventually(lambda: engine.cancelled == ["r"])


def test_a_silent_stream_notices_that_its_client_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has read all it was sent: nothing tells of its end but the next thing sent."""
    monkeypatch.setattr(EventStream.__init__, "__defaults__", (0.0, 0.05))
    engine = FakeEngine()
    with on_a_socket(engine) as port:
        connection = connected(port)
        connection.sendall(post({"prompt": "a", "stream": True}))
        received = b""
        while b'"held"' not in received:
            received += connection.recv(4096)
        connection.shutdown(socket.SHUT_WR)
        while received.count(KEEP_ALIVE) < 3:  # as long as it reads it is served
            received += connection.recv(4096)
        assert not engine.cancelled
        connection.close()
        eventually(lambda: engine.cancelled)


def test_a_client_of_http_1_0_that_sends_no_more_is_not_waited_for() -> None:
    engine = FakeEngine()
    with on_a_socket(engine) as port, connected(port) as connection:
        connection.sendall(post({"prompt": "a"}, version="1.0"))
        eventually(lambda: engine.submissions)
        began = time.monotonic()
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: engine.cancelled)
        assert time.monotonic() - began >= 0.9 * OLD_CLIENT_S


def test_a_client_that_sent_more_than_its_request_and_is_gone_frees_its_slot() -> None:
    engine = FakeEngine()
    with on_a_socket(engine) as port:
        connection = connected(port)
        connection.sendall(post({"prompt": "a"}) + b"GET /")
        eventually(lambda: engine.submissions)
        connection.close()
        eventually(lambda: engine.cancelled)
