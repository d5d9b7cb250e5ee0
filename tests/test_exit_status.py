"""How a process ends that cannot serve; tests/test_process.py has the ends of one that does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine

from server.process import serve
from server.settings import Settings

ROOT = Path(__file__).parent.parent


def never(_: Settings) -> FakeEngine:
    raise AssertionError("the model is loaded")


def refused(capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    """The one line with which a server of these settings ends, before it loads anything."""
    assert serve(Settings.model_validate(settings), never) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m server: error: ")
    return line


def test_a_port_in_use_is_told_before_the_model_loads(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, port=port)
    assert "--host, --port" in line
    assert f"127.0.0.1:{port}: Address already in use" in line


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("192.0.2.1", "192.0.2.1:8000: "),
        ("a..b", "a..b: "),
        ("2001:db8::1", "[2001:db8::1]:8000: "),
    ],
)
def test_an_address_that_is_not_ours_is_told(
    host: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(capsys, host=host)


def test_more_connections_than_can_be_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, port=0, max_connections=10**12)
    assert "--max-connections: 1000000000000 connections need" in line


@pytest.mark.parametrize(
    ("flags", "status", "told"),
    [
        (["--checkpoint", "no/such"], 1, "cannot serve no/such: "),
        (["--port", "many"], 2, "--port or SPECDEC_PORT"),
    ],
)
def test_the_command_ends_with_its_status(flags: list[str], status: int, told: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "server", "--port", "0", *flags],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
