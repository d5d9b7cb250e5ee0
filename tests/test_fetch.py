"""Fetching against a server of our own that breaks off, refuses ranges, lies, or is not there."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from train.fetch import FetchError, fetch, main

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT at /whole; at /breaks, no more than 100,000 bytes of it at a time."""

    ranges: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)  # type: ignore[attr-defined]
        if self.path == "/missing":
            self.send_error(404)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.path == "/no-ranges":
            begin = 0
        if begin >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        breaks = self.path == "/breaks" or (self.path == "/no-ranges" and wanted is None)
        self.wfile.write(CONTENT[begin : begin + 100_000] if breaks else CONTENT[begin:])

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_what_is_whole_is_fetched_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    fetch(f"{server.url}/whole", target, SHA256)
    assert target.read_bytes() == CONTENT
    fetch(f"{server.url}/whole", target, SHA256)
    assert server.ranges == [None]


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    fetch(f"{server.url}/breaks", tmp_path / "file", SHA256, attempts=10, pause_s=0)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, *(f"bytes={n}00000-" for n in range(1, 6))]
    assert not list(tmp_path.glob("*.partial"))


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"gave up after 2 tries: .*broke \d+ bytes before"):
        fetch(f"{server.url}/breaks", tmp_path / "file", SHA256, attempts=2, pause_s=0)
    assert not (tmp_path / "file").exists()
    fetch(f"{server.url}/whole", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=200000-"


def test_a_server_without_ranges_is_asked_for_the_whole(server: Server, tmp_path: Path) -> None:
    fetch(f"{server.url}/no-ranges", tmp_path / "file", SHA256, pause_s=0)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_partial_file_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(CONTENT)
    fetch(f"{server.url}/whole", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_checksum_keeps_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", f"{server.url}/whole", "--out", str(tmp_path / "f"), "--sha256", "0" * 64]
    assert main(arguments) == 1
    assert f"has sha256 {SHA256}, not 000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_checksum_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FetchError, match="is there already"):
        fetch(f"{server.url}/whole", tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_what_is_not_there_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="/missing: 404"):
        fetch(f"{server.url}/missing", tmp_path / "file", SHA256)
    assert server.ranges == [None]


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with Server() as closed:
        url = closed.url
    with pytest.raises(FetchError, match="gave up after 2 tries"):
        fetch(f"{url}/whole", tmp_path / "file", SHA256, attempts=2, pause_s=0)
