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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import STATUS, Client, FakeEngine, error_of
from live import free_port, wait_for
from patience import PATIENCE_S, eventually, until, wait_until_set
from test_disconnect import Connection

from server.process import serve
from server.settings import Settings

TESTS = Path(__file__).parent


@contextmanager
def served(
    *flags: str, trust: ssl.SSLContext | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process of `served.py`: closing its standard input ends what it holds."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, TESTS / "served.py", "--port", str(port), *flags],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        stdin=subprocess.PIPE,
    )
    url = f"{'https' if trust else 'http'}://127.0.0.1:{port}"
    with process:
        try:
            wait_for(url, trust or True, lambda: process.poll() is None)
            yield process, url
        finally:
            process.kill()


def ask(url: str, prompt: object) -> httpx.Response:
    return httpx.post(f"{url}/generate", json={"prompt": str(prompt)})


@contextmanager
def held(url: str) -> Iterator[http.client.HTTPConnection]:
    """The connection of a request that is held, and not streamed."""
    address = url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE_S)) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/generate", json.dumps({"prompt": "hold"}), headers)
        yield connection


@contextmanager
def held_stream(url: str) -> Iterator[Iterator[str]]:
    """The lines of a stream that is held."""
    request = {"prompt": "hold", "stream": True}
    with httpx.stream("POST", f"{url}/generate", json=request) as stream:
        yield stream.iter_lines()


def wait_until_begun(url: str, requests: int) -> None:
    written = f'tokens_total{{mode="auto",model_name="fake"}} {5.0 * requests}'
    eventually(lambda: written in httpx.get(f"{url}/metrics").text)


def test_what_is_begun_is_finished_before_the_process_ends() -> None:
    with served("--drain-seconds", str(PATIENCE_S)) as (process, url):
        assert process.stdin is not None
        with held(url) as waiting, held_stream(url) as lines:
            wait_until_begun(url, 2)
            process.send_signal(signal.SIGTERM)
            ready = eventually(lambda: refusal(url))
            assert error_of(ready)["code"] == "draining"
            refused = ask(url, "another")
            assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
            assert httpx.get(f"{url}/health").json() == {"status": "draining"}
            process.stdin.close()
            assert '"finish_reason": "stop"' in "".join(lines)
            assert json.loads(waiting.getresponse().read())["text"] == "begun"
        assert process.wait(PATIENCE_S) == 0


def refusal(url: str) -> httpx.Response | None:
    """What /ready says where it does not say that all is well."""
    ready = httpx.get(f"{url}/ready")
    return None if ready.status_code == 200 else ready


def test_what_does_not_finish_in_time_is_told_and_a_stream_too() -> None:
    with served("--drain-seconds", "0.3") as (process, url):
        with held(url) as waiting, held_stream(url) as lines:
            wait_until_begun(url, 2)
            process.send_signal(signal.SIGINT)
            *_, last = [line for line in lines if line]
            error = json.loads(last.removeprefix("data: "))["error"]
            told = (error["message"], error["type"], error["code"])
            assert told == ("the server is shutting down", "server_error", "draining")
            answer = waiting.getresponse()
            assert answer.status == 503
            assert json.loads(answer.read())["error"] == error
        assert process.wait(PATIENCE_S) == 1


def test_a_second_signal_ends_the_process_at_once() -> None:
    with (
        served("--drain-seconds", str(PATIENCE_S)) as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(ask, url, "hold")
        wait_until_begun(url, 1)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: refusal(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
        assert isinstance(answer.exception(), httpx.TransportError)


def test_the_server_ends_with_its_engine() -> None:
    with served() as (process, url):
        answer = ask(url, "die")
        assert (answer.status_code, error_of(answer)["message"]) == (500, "the engine has died")
        assert process.wait(PATIENCE_S) == 1


LOADS_FOR_MINUTES = """
import sys, time
from server.engine_process import EngineProcess
from server.logs import configure
from server.process import serve
from server.settings import read_settings

def load(settings):
    time.sleep(6000)

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

    with process:
        try:
            eventually(loading)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0
            assert b"told to stop while loading" in told
            assert b"Traceback" not in told
        finally:
            process.kill()


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
        loop = asyncio.get_running_loop()
        began = loop.time()
        draining = asyncio.create_task(service.drain())
        if leave:
            await asyncio.sleep(0.01)
            assert not draining.done()
            connection.leave()
        drained = await draining
        assert drained or loop.time() - began > 0.99 * seconds
        await running
        return drained, json.loads(connection.sent[1]["body"])

    with Client(engine, drain_seconds=seconds) as client:
        result: tuple[bool, Any] = client.run(scenario())
        assert error_of(client.get("/ready"))["code"] == "draining"
        assert error_of(client.generate(prompt="a"))["code"] == "draining"
    return result


def test_draining_waits_for_the_last_request() -> None:
    drained, answer = drain_with(FakeEngine(), PATIENCE_S, leave=True)
    assert drained
    assert answer["finish_reason"] == "cancelled"


def test_draining_has_an_end() -> None:
    released = threading.Event()

    def hanging(_: object) -> list[Any]:
        wait_until_set(released)
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
