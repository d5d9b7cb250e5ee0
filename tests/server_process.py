"""The server as users start it, a process of its own, and connections to it that end with it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from live import free_port, wait_for
from patience import PATIENCE_S

TESTS = Path(__file__).parent

PLAIN = ("-m", "server")
PACED = (str(TESTS / "paced.py"),)
"""The server with rounds of a set length."""


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: list[bytes] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    def ask(self, path: str = "/generate", **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=fields)

    def connect(self, request: dict[str, Any]) -> socket.socket:
        """A connection with a request on its way, whose answer nobody reads yet."""
        body = json.dumps(request).encode()
        address = ("127.0.0.1", int(self.url.rpartition(":")[2]))
        connection = self._opened.enter_context(socket.create_connection(address))
        connection.settimeout(PATIENCE_S)
        head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def metric(self, name: str, labels: str = "") -> float:
        """The sum of a metric's series; of those with such labels, if any are given."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.findall(rf"^specdec_{name}\{{.*{labels}.*\}} (.*)$", text, re.MULTILINE)
        return sum(map(float, found))

    def running(self) -> float:
        return self.metric("num_requests_running")

    def busy(self) -> float:
        return self.running() + self.metric("num_requests_waiting")


def started(
    checkpoint: Path, *flags: str, program: tuple[str, ...] = PLAIN
) -> tuple[subprocess.Popen[bytes], str]:
    """A server on its way, and its address."""
    port = free_port()
    # a second thread only waits for the first where a model is tiny
    alone = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, "--checkpoint", str(checkpoint), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *flags],
        stderr=subprocess.PIPE,
        cwd=TESTS.parent,
        env={**os.environ, **alone, "PYTHONPATH": str(TESTS.parent)},
    )
    return process, f"http://127.0.0.1:{port}"


@contextmanager
def told_if_it_fails(log: list[bytes]) -> Iterator[None]:
    """What a server wrote, beside the assertion that fails."""
    try:
        yield
    except AssertionError as error:
        error.add_note(b"".join(log[-50:]).decode(errors="replace"))
        raise


@contextmanager
def serving(checkpoint: Path, *flags: str, program: tuple[str, ...] = PLAIN) -> Iterator[Server]:
    """A server that is ready.  What is in flight or running behind the block, or when an assertion
    in it fails, is ended."""
    process, url = started(checkpoint, *flags, program=program)
    server = Server(process, url)
    assert process.stderr is not None
    # read on, or the pipe fills and the server stands still
    reader = threading.Thread(target=server.log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    with process:
        try:
            with server._opened, told_if_it_fails(server.log):
                wait_for(url, alive=lambda: process.poll() is None)
                yield server
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            reader.join()
