"""What is logged: a line for each request, in either form, and nothing that a client wrote."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from fake_engine import Client, FakeEngine, finished, say
from patience import PATIENCE_S
from test_process import ask, served

from server.logs import _formatter
from server.messages import Event, Failed, Finished, FinishReason, Progress, Timing
from server.probe import healthy
from server.settings import Settings

SECRET = "Sesame, open"


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "server.request_log"]


def test_a_line_for_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Client(FakeEngine(say(b"abc", b"d", rest=b"e"))) as client:
        answer = client.generate({"X-Request-ID": "r-1"}, prompt=SECRET, mode="speculative")
        assert answer.headers["X-Request-ID"] == "r-1"
    (line,) = lines(caplog)
    told = vars(line)
    assert line.getMessage() == "request"
    expected = {
        "request_id": "r-1",
        "result": "stop",
        "mode": "speculative",
        "choices": 1,
        "prompt_bytes": len(SECRET),
        "output_bytes": 5,
        "rounds": 2,
        "drafted": 8,
        "accepted": 3,
        "acceptance": 3 / 8,
        "queue_s": 0.25,
        "prefill_s": 0.5,
        "decode_s": 2.0,
    }
    assert {key: told[key] for key in expected} == expected
    assert 0 < told["first_byte_s"] <= told["seconds"] < PATIENCE_S
    assert "prompts" not in told
    for record in caplog.records:
        assert "Sesame" not in str(vars(record))


def test_choices_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    slow = Finished(b"ab", FinishReason.LENGTH, 2, timing=Timing(queue_s=3.0))
    ends: Iterator[Event] = iter([finished(2, b"xy"), slow, Failed("no")])
    with caplog.at_level(logging.INFO):
        with Client(FakeEngine(lambda _: [next(ends)])) as client:
            client.generate(prompt="a", n=3, request_id="r", mode="base")
        (line,) = lines(caplog)
    told = vars(line)
    assert set(told["result"].split(",")) == {"stop", "length", "error"}
    assert (told["choices"], told["output_bytes"], told["queue_s"]) == (3, 4, 3.0)


def test_an_echoed_prompt_is_no_first_byte(caplog: pytest.LogCaptureFixture) -> None:
    script: list[Event] = [Progress(b"prompt", echo=True), finished(0)]
    with caplog.at_level(logging.INFO), Client(FakeEngine(lambda _: script)) as client:
        client.generate(prompt="prompt", echo=True, max_tokens=0, mode="base")
    (line,) = lines(caplog)
    assert vars(line)["first_byte_s"] is None


def test_prompts_are_logged_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(say())
    with caplog.at_level(logging.INFO), Client(engine, log_prompts=True) as client:
        client.generate(prompt_bytes="AP9h", mode="base", n=2)
    (line,) = lines(caplog)
    assert vars(line)["prompts"] == [r"\x00\xffa"]


def test_refusals(caplog: pytest.LogCaptureFixture) -> None:
    headers = {"X-Request-ID": "mine"}
    with caplog.at_level(logging.INFO):
        with Client(FakeEngine(), max_waiting=0, log_prompts=True) as client:
            wrong = client.generate(headers, prompt=SECRET, temperature=-1)
            impossible = client.generate(prompt=SECRET * 10)
        with Client(FakeEngine(), api_keys=("key",)) as client:
            stranger = client.generate(headers, prompt=SECRET)
    assert [r.status_code for r in (wrong, impossible, stranger)] == [422, 400, 401]
    assert [r.headers.get("X-Request-ID") == "mine" for r in (wrong, stranger)] == [True, True]
    told = [
        tuple(vars(line)[key] for key in ("request_id", "result", "status"))
        for line in lines(caplog)
    ]
    assert told[0] == ("mine", "greater_than_equal", 422)
    assert told[1][1:] == ("context_length_exceeded", 400)
    assert told[2] == ("mine", "invalid_api_key", 401)
    for record in caplog.records:
        assert "Sesame" not in str(vars(record))


def record_of(**extra: object) -> logging.LogRecord:
    record = logging.LogRecord("server.x", logging.INFO, "x.py", 1, "request", None, None)
    record.created = 0.0
    vars(record).update(extra)
    return record


def test_json() -> None:
    record = record_of(request_id="r", seconds=0.25, prompts=["a\nb"], nothing=None)
    line = _formatter("json").format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00Z",
        "level": "INFO",
        "logger": "server.x",
        "message": "request",
        "request_id": "r",
        "seconds": 0.25,
        "prompts": ["a\nb"],
        "nothing": None,
    }


def test_console() -> None:
    line = _formatter("console").format(record_of(seconds=1 / 3, prompts=["a\nb"], nothing=None))
    assert line.endswith(r" INFO server.x: request seconds=0.3333 prompts=['a\nb']")


@pytest.mark.parametrize("style", ["json", "console"])
def test_the_process_logs_as_asked(style: str, capfd: pytest.CaptureFixture[str]) -> None:
    with served("--log-format", style) as (process, url):
        assert ask(url, "anything").status_code == 200
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    written = capfd.readouterr().err.splitlines()
    (line,) = [line for line in written if "output_bytes" in line]
    assert "POST" not in line
    if style == "json":
        assert json.loads(line)["result"] == "stop"
        assert all(json.loads(line)["time"] for line in written)
    else:
        assert " INFO server.request_log: request request_id=" in line


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::1", "[fe80::1]"), ("here", "here")],
)
def test_the_probe_asks_this_machine(
    host: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls: list[str] = []
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda url, **_: urls.append(url) or nullcontext()
    )
    assert healthy(Settings(host=host, port=81))
    assert urls == [f"http://{asked}:81/health"]


def test_the_probe_tells_health() -> None:
    with served() as (process, url):
        port = url.rpartition(":")[2]
        environment = {**os.environ, "SPECDEC_HOST": "0.0.0.0", "SPECDEC_PORT": port}
        command = [sys.executable, "-m", "server.probe"]
        assert subprocess.run(command, env=environment, check=False).returncode == 0
        process.kill()
        process.wait()
        ended = subprocess.run(command, env=environment, check=False, capture_output=True)
        assert ended.returncode == 1
        assert b"refused" in ended.stderr
