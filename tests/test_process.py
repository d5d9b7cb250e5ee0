"""The end of the process, and what goes on before it."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import STATUS, Client, FakeEngine, error_of
from live import free_port, wait_for
from patience import until
from test_disconnect import Connection

from server.process import serve
from server.settings import Settings

TESTS = Path(__file__).parent


@contextmanager
def served(
    *flags: str, trust: ssl.SSLContext | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, TESTS / "served.py", "--port", str(port), *flags],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    url = f"{'https' if trust else 'http'}://127.0.0.1:{port}"
    try:
        wait_for(url, trust or True, lambda: process.poll() is None)
        yield process, url
    finally:
        process.kill()
        process.wait()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(url: str, seconds: float) -> httpx.Response:
    return httpx.post(f"{url}/generate", json={"prompt": str(seconds)}, timeout=30)


def sent(url: str, seconds: float) -> http.client.HTTPConnection:
    """A request on its way: in flight by the time that one sent after it has begun."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/generate", json.dumps({"prompt": str(seconds)}), headers)
    return connection


def test_what_is_begun_is_finished_before_the_process_ends() -> None:
    with served() as (process, url):
        waiting = sent(url, 2.5)
        with httpx.stream(
            "POST", f"{url}/generate", json={"prompt": "2.5", "stream": True}
        ) as stream:
            lines = stream.iter_lines()
            assert "begun" in next(lines)
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 2
            while (ready := httpx.get(f"{url}/ready")).status_code == 200:
                assert time.monotonic() < deadline
            assert error_of(ready)["code"] == "draining"
            refused = ask(url, 0)
            assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
            assert httpx.get(f"{url}/health").json() == {"status": "draining"}
            assert '"finish_reason": "stop"' in "".join(lines)
        assert json.loads(waiting.getresponse().read())["text"] == "begun"
        waiting.close()
        assert process.wait(10) == 0


def test_what_does_not_finish_in_time_is_told_and_a_stream_too() -> None:
    with served("--drain-seconds", "0.3") as (process, url):
        waiting = sent(url, 60)
        with httpx.stream(
            "POST", f"{url}/generate", json={"prompt": "60", "stream": True}
        ) as stream:
            lines = stream.iter_lines()
            assert "begun" in next(lines)
            process.send_signal(signal.SIGINT)
            *_, last = [line for line in lines if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["message"], error["type"]) == ("the server is shutting down", "server_error")
        answer = waiting.getresponse()
        assert answer.status == 500
        assert json.loads(answer.read())["error"]["message"] == "the server is shutting down"
        waiting.close()
        assert process.wait(10) == 1


def test_a_second_signal_ends_the_process_at_once() -> None:
    with served() as (process, url), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, url, 60)
        written = 'tokens_total{mode="auto",model_name="fake"} 5.0'
        eventually(lambda: written in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{url}/ready").status_code != 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM
        assert isinstance(answer.exception(), httpx.TransportError)


def test_the_server_ends_with_its_engine() -> None:
    with served() as (process, url):
        answer = httpx.post(f"{url}/generate", json={"prompt": "die"}, timeout=30)
        assert (answer.status_code, error_of(answer)["message"]) == (500, "the engine has died")
        assert process.wait(10) == 1


LOADS_FOR_MINUTES = """
import sys, time
from server.engine_process import EngineProcess
from server.logs import configure
from server.process import serve
from server.settings import read_settings

def load(settings):
    time.sleep(600)

if __name__ == "__main__":
    settings = read_settings()
    configure(settings)
    sys.exit(serve(settings, lambda settings: EngineProcess(settings, load)))
"""


def test_told_to_stop_while_it_loads_it_ends_at_once(tmp_path: Path) -> None:
    script, port = tmp_path / "slow.py", free_port()
    script.write_text(LOADS_FOR_MINUTES)
    process = subprocess.Popen(
        [sys.executable, script, "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        stderr=subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"

    def loading() -> bool:
        with suppress(httpx.TransportError):
            return bool(httpx.get(f"{url}/health").json() == {"status": "loading"})
        return False

    try:
        eventually(loading)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0
        assert b"told to stop while loading" in told
        assert b"Traceback" not in told
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", *subject, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    trust = ssl.create_default_context(cafile=str(certificate))
    flags = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    with served(*flags, trust=trust) as (_, url):
        assert httpx.get(f"{url}/health", verify=trust).json() == {"status": "ok"}


def test_a_certificate_that_is_none_ends_the_process_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings.model_validate({"ssl_certfile": __file__, "ssl_keyfile": __file__})
    assert serve(settings, lambda _: FakeEngine()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ssl-certfile" in line


def drain_with(engine: FakeEngine, seconds: float, leave: bool) -> tuple[bool, Any]:
    """Whether the service drained, and the answer to the one request in flight."""

    async def scenario() -> tuple[bool, Any]:
        connection = Connection(client, prompt="a", request_id="r")
        running = asyncio.create_task(connection.run())
        await until(lambda: engine.submissions)
        service = client.app.state.service
        service.draining = True
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        if leave:
            connection.leave()
        drained = await draining
        await running
        return drained, json.loads(connection.sent[1]["body"])

    with Client(engine, drain_seconds=seconds) as client:
        result: tuple[bool, Any] = client.run(scenario())
        assert error_of(client.get("/ready"))["code"] == "draining"
        assert error_of(client.generate(prompt="a"))["code"] == "draining"
    return result


def test_draining_waits_for_the_last_request() -> None:
    drained, answer = drain_with(FakeEngine(), 20.0, leave=True)
    assert drained
    assert answer["finish_reason"] == "cancelled"


def test_draining_has_an_end() -> None:
    released = threading.Event()

    def hanging(_: object) -> list[Any]:
        assert released.wait(20)
        return []

    # one engine tells its requests when it is stopped, the other hangs
    for engine in (FakeEngine(), FakeEngine(hanging)):
        drained, answer = drain_with(engine, 0.05, leave=False)
        assert not drained
        assert engine.stopped
        assert answer["error"]["message"] == "the server is shutting down"
    released.set()


def test_draining_with_nothing_in_flight_is_done_at_once() -> None:
    with Client(FakeEngine(), drain_seconds=0) as client:
        assert client.run(client.app.state.service.drain())


def test_stalls_are_what_the_operator_calls_so() -> None:
    engine = FakeEngine()
    with Client(engine, stall_seconds=5.0) as client:
        for seconds, status in ((4.9, 200), (5.1, 503)):
            engine.now = replace(STATUS, running=1, seconds_since_progress=seconds)
            assert client.get("/health").status_code == status
