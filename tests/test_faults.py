"""What goes wrong around a running server: a real one, with requests that take minutes.

Greedy clients, clients that leave, clients that do not read, bodies made to keep the server busy,
and an end under load.
"""

import base64
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from patience import PATIENCE_S, eventually
from server_process import PACED, Server, serving
from tiny import agreeing_prophet, tiny_model

from specdec.checkpoint import save_checkpoint

CONTEXT = 16384
LONG = {"prompt": "x", "max_tokens": 16000, "ignore_eos": True, "mode": "base"}
"""Minutes of rounds of a set length (paced.py), far more than a test waits for its end."""


@contextmanager
def paced(directory: Path, *flags: str) -> Iterator[Server]:
    model = tiny_model(context=CONTEXT)
    save_checkpoint(directory, model, agreeing_prophet(model), torch.float32)
    flags = ("--dtype", "float64", "--max-batch", "4", *flags)
    with serving(directory, *flags, program=PACED) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with paced(tmp_path_factory.mktemp("faults"), "--client-seconds", "3") as server:
        yield server


def cancelled(server: Server) -> float:
    """Requests that were, in any mode."""
    return server.metric("request_success_total", 'finished_reason="cancelled"')


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_free_their_slots_and_the_queue(server: Server, stream: bool) -> None:
    """Twice as many as there are slots, so that half of them leave while they wait."""
    before = cancelled(server)
    connections = [server.connect(LONG | {"stream": stream}) for _ in range(8)]
    eventually(lambda: server.busy() == 8)
    eventually(lambda: server.running() == 4)
    for connection in connections:
        connection.close()
    eventually(lambda: server.busy() == 0)
    eventually(lambda: cancelled(server) == before + 8)
    assert server.ask(prompt="x", max_tokens=5).status_code == 200


def test_clients_that_leave_amid_their_streams_free_their_slots(server: Server) -> None:
    """More of them, one after another, than there are slots."""
    before = cancelled(server)
    for _ in range(6):
        request = LONG | {"stream": True}
        with httpx.stream("POST", f"{server.url}/generate", json=request) as response:
            assert next(response.iter_raw()).startswith(b"data: ")
    eventually(lambda: server.busy() == 0)
    eventually(lambda: cancelled(server) == before + 6)
    assert server.ask(prompt="x", max_tokens=5).status_code == 200


def test_a_stream_has_bytes_as_they_come(server: Server) -> None:
    request = LONG | {"max_tokens": 80, "seed": 5}
    plain = server.ask(**request).json()
    with httpx.stream(
        "POST", f"{server.url}/generate", json=request | {"stream": True}
    ) as response:
        events = [json.loads(line[len("data: ") :]) for line in response.iter_lines() if line]
    assert len(events) > 3
    output = b"".join(base64.b64decode(event["bytes"]) for event in events)
    assert output == base64.b64decode(plain["bytes"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_nothing_holds_up_nobody_and_is_dropped(
    server: Server, stream: bool
) -> None:
    def dropped() -> int:
        return sum(b"has not taken in a part of its answer in 3 s" in line for line in server.log)

    before = dropped()
    # some 25 MB of scores, more than the sockets on the way take in
    request = {"prompt": "ab" * 1950, "max_tokens": 5, "n": 8, "echo": True, "logprobs": 20}
    with server.connect(request | {"stream": stream}) as stalled:
        assert stalled.recv(100).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            assert server.ask(prompt="x", max_tokens=10, ignore_eos=True).status_code == 200
        eventually(lambda: dropped() == before + 1)
        eventually(lambda: server.busy() == 0)


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
    response = httpx.post(f"{server.url}/generate", content=body, headers=headers)
    assert response.status_code == 422
    assert named in response.json()["error"]["message"]
    assert "more" not in response.json()["error"]["message"].replace("more than 256", "")


def test_told_to_stop_under_load_it_finishes_what_it_can(tmp_path: Path) -> None:
    with (
        paced(tmp_path, "--drain-seconds", str(PATIENCE_S)) as server,
        ThreadPoolExecutor(1) as clients,
    ):
        others = [server.connect(LONG | {"stream": True}) for _ in range(3)]
        eventually(lambda: server.running() == 3)
        long = clients.submit(server.ask, prompt="x", max_tokens=200, ignore_eos=True, mode="base")
        eventually(lambda: server.running() == 4)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        refused = server.ask(prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert long.result().json()["usage"]["completion_tokens"] == 200
        assert server.process.poll() is None
        for connection in others:
            connection.close()
        assert server.process.wait(PATIENCE_S) == 0


def test_what_it_cannot_finish_in_time_is_told(tmp_path: Path) -> None:
    with paced(tmp_path, "--drain-seconds", "0.5") as server:
        cut_off = [server.connect(LONG | {"stream": True}) for _ in range(6)]
        eventually(lambda: server.busy() == 6)
        eventually(lambda: server.running() == 4)
        server.process.send_signal(signal.SIGTERM)
        for connection in cut_off:
            with connection.makefile("rb") as answer:
                events = [line for line in answer if line.startswith(b"data: ")]
            assert b"the server is shutting down" in events[-1]
        assert server.process.wait(PATIENCE_S) == 1
