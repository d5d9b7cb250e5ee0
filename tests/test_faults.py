"""What goes wrong around a running server: a real one, with requests that take seconds.

Greedy clients, clients that leave, clients that do not read, bodies made to keep the server busy,
and an end under load.
"""

import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from test_engine import eventually
from test_server import start, wait_until_ready
from tiny import agreeing_prophet, tiny_model

from specdec.checkpoint import save_checkpoint

LONG = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True}
"""Many seconds of decoding in float64, far more than a test waits for its end."""


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: list[bytes]

    def ask(self, path: str = "/generate", **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=fields, timeout=60)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^specdec_{name}\{{.*\}} (.*)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def busy(self) -> float:
        return self.metric("num_requests_running") + self.metric("num_requests_waiting")


def serve(directory: Path, *flags: str) -> Iterator[Server]:
    model = tiny_model(context=4096)
    save_checkpoint(directory, model, agreeing_prophet(model), torch.float32)
    process, url = start(directory, "--dtype", "float64", "--max-batch", "4", *flags)
    assert process.stderr is not None
    server = Server(process, url, [])
    reader = threading.Thread(target=lambda: server.log.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        wait_until_ready(process, url)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join()
        process.stderr.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(tmp_path_factory.mktemp("faults"), "--client-seconds", "3")


def cancelled(server: Server) -> float:
    """Requests that were, in any mode."""
    text = httpx.get(f"{server.url}/metrics").text
    pattern = r'^specdec_request_success_total\{finished_reason="cancelled".*\} (.*)$'
    return sum(map(float, re.findall(pattern, text, re.MULTILINE)))


def connect(server: Server, request: dict[str, Any]) -> socket.socket:
    """A connection with a request on its way, whose answer nobody reads yet."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    body = json.dumps(request).encode()
    connection = socket.create_connection((host, int(port)))
    head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_free_their_slots_and_the_queue(server: Server, stream: bool) -> None:
    """Twice as many as there are slots, so that half of them leave while they wait."""
    before = cancelled(server)
    connections = [connect(server, LONG | {"stream": stream}) for _ in range(8)]
    assert eventually(lambda: server.busy() == 8)
    assert eventually(lambda: server.metric("num_requests_running") == 4)
    for connection in connections:
        connection.close()
    assert eventually(lambda: server.busy() == 0)
    assert cancelled(server) == before + 8
    assert server.ask(prompt="x", max_tokens=5).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_nothing_holds_up_nobody_and_is_dropped(
    server: Server, stream: bool
) -> None:
    def dropped() -> int:
        return sum(b"has not taken in a part of its answer in 3 s" in line for line in server.log)

    before = dropped()
    # some 25 MB of scores, more than the sockets on the way take in
    request = {"prompt": "ab" * 1950, "max_tokens": 5, "n": 8, "echo": True, "logprobs": 20}
    with connect(server, request | {"stream": stream}) as stalled:
        assert stalled.recv(100).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            assert server.ask(prompt="x", max_tokens=50, ignore_eos=True).status_code == 200
        assert eventually(lambda: dropped() == before + 1)
        assert eventually(lambda: server.busy() == 0)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ('{"prompt": "a", "stop": [' + "1," * 100_000 + "1]}", "at most 64 of stop"),
        ('{"prompt": "a", "stop_bytes": [' + '"",' * 100_000 + '""]}', "at most 64 of stop"),
        ("{" + ",".join(f'"{i}":1' for i in range(100_000)) + "}", "more than 256 fields"),
        (
            '{"prompt": "a", "logit_bias": {' + ",".join(f'"{i}":1' for i in range(50_000)) + "}}",
            "logit_bias: there are more than 256 fields",
        ),
    ],
    ids=["stop", "stop_bytes", "fields", "logit_bias"],
)
def test_a_body_of_countless_mistakes_is_refused_at_the_first(
    server: Server, body: str, named: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/generate", content=body, headers=headers, timeout=60)
    assert response.status_code == 422
    assert named in response.json()["error"]["message"]
    assert "more" not in response.json()["error"]["message"].replace("more than 256", "")


def test_told_to_stop_under_load_it_finishes_what_it_can(tmp_path: Path) -> None:
    for server in serve(tmp_path, "--drain-seconds", "5"):
        cut_off = [connect(server, LONG | {"stream": True}) for _ in range(3)]
        assert eventually(lambda server=server: server.metric("num_requests_running") == 3)
        with ThreadPoolExecutor(1) as clients:
            short = clients.submit(server.ask, prompt="x", max_tokens=200, ignore_eos=True)
            assert eventually(lambda server=server: server.metric("num_requests_running") == 4)
            server.process.send_signal(signal.SIGTERM)
            assert eventually(
                lambda server=server: httpx.get(f"{server.url}/ready").status_code == 503
            )
            refused = server.ask(prompt="x")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert short.result().json()["usage"]["completion_tokens"] == 200
        for connection in cut_off:
            with connection, connection.makefile("rb") as answer:
                events = [line for line in answer if line.startswith(b"data: ")]
            assert b"the server is shutting down" in events[-1]
        assert server.process.wait(30) == 1
