"""More connections than a server can have."""

import json
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from live import free_port, wait_for
from patience import eventually
from test_connection import HEALTH, error_in
from wire import connected, exchange, on_a_socket, parts, post, read_all

from server.connections import RESERVED, Connections, most_connections

TESTS = Path(__file__).parent


class Fake:
    def __init__(self, gone: list["Fake"]) -> None:
        self._gone = gone

    def give_way(self) -> None:
        self._gone.append(self)


def test_who_has_waited_longest_gives_way() -> None:
    gone: list[Fake] = []
    connections = Connections(16)
    every = [Fake(gone) for _ in range(18)]
    for each in every[:16]:
        connections.wait(each)
    connections.work(every[0])
    connections.work(every[1])
    connections.wait(every[0])  # has its answer, and waits behind the others
    assert not gone
    connections.wait(every[16])
    assert gone == [every[2]]
    connections.leave(every[3])
    connections.wait(every[17])
    assert gone == [every[2]]


def test_it_is_full_while_a_few_can_still_ask() -> None:
    connections = Connections(16)
    every = [Fake([]) for _ in range(16 - RESERVED + 1)]
    for each in every:
        assert not connections.full
        connections.wait(each)
        connections.work(each)
    assert connections.full
    connections.leave(every[0])
    assert not connections.full


@pytest.mark.parametrize(
    ("descriptors", "most"), [(20, 16), (200, 100), (2**16, 4096), (resource.RLIM_INFINITY, 4096)]
)
def test_half_of_the_descriptors_are_for_connections(
    descriptors: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (descriptors, descriptors))
    assert most_connections(None) == most


def test_more_than_can_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (200, 400))
    assert most_connections(100) == 100
    with pytest.raises(ValueError, match=r"101 connections need 202 file descriptors.* have 200"):
        most_connections(101)


def test_idle_connections_give_way_to_new_ones() -> None:
    with on_a_socket(FakeEngine(), max_connections=16) as port, ExitStack() as idle:
        asked_before = idle.enter_context(connected(port))
        asked_before.sendall(HEALTH.replace(b"Connection: close\r\n", b""))
        while not asked_before.recv(4096).endswith(b"}"):
            pass
        first, *others = [idle.enter_context(connected(port)) for _ in range(40)]
        assert parts(exchange(port, HEALTH))[0] == 200
        assert error_in(read_all(first)) == (503, "too_many_connections")
        # what it would be told could be taken for the answer to its next request
        assert read_all(asked_before) == b""
        # the last ones are still there
        others[-1].sendall(HEALTH)
        assert parts(read_all(others[-1]))[0] == 200


def test_health_is_told_while_all_others_have_requests_in_flight() -> None:
    engine = FakeEngine()
    with on_a_socket(engine, max_connections=16) as port, ExitStack() as clients:
        for index in range(16 - RESERVED):
            client = clients.enter_context(connected(port))
            client.sendall(post({"prompt": "a", "request_id": f"r{index}"}))
        eventually(lambda: len(engine.submissions) == 16 - RESERVED)
        status, headers, body = parts(exchange(port, post({"prompt": "a"}, "Connection: close")))
        assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
        assert headers["x-request-id"]
        for path in (b"/health", b"/ready"):
            assert parts(exchange(port, HEALTH.replace(b"/health", path)))[0] == 200
    assert len(engine.submissions) == 16 - RESERVED


def test_a_server_with_few_descriptors_answers_beside_idle_clients(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    script = f'ulimit -n 200; exec "$0" {TESTS / "served.py"} --port {port}'
    with log.open("wb") as told:
        process = subprocess.Popen(
            ["bash", "-c", script, sys.executable],
            env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
            stderr=told,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", alive=lambda: process.poll() is None)
        with ExitStack() as idle:
            for _ in range(260):
                idle.enter_context(connected(port))
            for _ in range(3):
                assert parts(exchange(port, HEALTH))[0] == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "at most 100 connections" in log.read_text()
    assert "Too many open files" not in log.read_text()


def test_connections_of_clients_that_do_not_read_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.connection.LINGER_S", 0.05)
    with on_a_socket(FakeEngine(), client_seconds=0.3) as port:
        before = open_files()
        with connected(port) as connection:
            # more megabytes than the sockets on the way take in
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            eventually(lambda: open_files() == before + 1)


def open_files() -> int:
    """Of this process, which is client and server."""
    return len(list(Path("/proc/self/fd").iterdir()))
