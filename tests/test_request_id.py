"""A request's id and its trace: on every answer, and on every line of the log."""

import asyncio
import json
import logging
import re

import pytest
from fake_engine import Client, FakeEngine, error_of, say
from test_disconnect import Connection
from test_logs import lines

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DRAWN = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/nothing", None, 404),
        ("PUT", "/generate", None, 405),
        ("POST", "/generate", b"{", 400),
        ("POST", "/generate", b'{"prompt": "a", "top_p": 2}', 422),
        ("POST", "/generate", b'{"prompt": "a"}', 200),
        ("POST", "/v1/completions", b'{"prompt": "a", "stream": true}', 200),
    ],
)
def test_every_answer_has_an_id(method: str, path: str, body: bytes | None, status: int) -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        for given in ("mine", None, "no id: ü"):
            headers = {"Content-Type": "application/json"}
            if given is not None:
                headers["X-Request-ID"] = given.encode("latin-1")
            response = client.request(method, path, content=body, headers=headers)
            if given == "mine":
                assert response.headers["X-Request-ID"] == "mine"
            else:
                assert DRAWN.fullmatch(response.headers["X-Request-ID"])
            refused = given not in (None, "mine") and method == "POST" and status == 200
            wrong = 400 if path.startswith("/v1/") else 422
            assert response.status_code == (wrong if refused else status)
            if refused:
                assert error_of(response)["param"] == "X-Request-ID"


def test_a_body_names_its_request() -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        headers = {"X-Request-ID": "header"}
        response = client.generate(headers, prompt="a", request_id="body")
        assert response.headers["X-Request-ID"] == response.json()["request_id"] == "body"
        # what cannot be read names nothing
        response = client.generate(headers, prompt="a", request_id="body", top_p=2)
        assert response.headers["X-Request-ID"] == "header"


def test_a_mistake_of_the_servers_has_the_id_and_a_traceback_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngine()

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    engine.submit = broken  # type: ignore[method-assign]
    with Client(engine) as client:
        response = client.generate({"X-Request-ID": "mine"}, prompt="a")
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert response.headers["X-Request-ID"] == "mine"
    (line,) = [record for record in caplog.records if record.exc_info]
    assert vars(line)["request_id"] == "mine"


def test_the_line_of_a_refusal_names_the_field(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Client(FakeEngine(say(b"x"))) as client:
        client.generate(prompt="a", top_p=2)
        client.generate(prompt="a", max_tokens=1000)
        client.request("POST", "/generate", content=b"{", headers={"Content-Type": "text/plain"})
    told = [vars(line) for line in lines(caplog)]
    assert [line["param"] for line in told] == ["top_p", "max_tokens", None]
    for line in told:
        assert DRAWN.fullmatch(line["request_id"])


def test_the_trace_of_a_request_is_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Client(FakeEngine(say(b"x"))) as client:
        for parent in (PARENT, "nonsense", PARENT + "0"):
            client.generate({"traceparent": parent}, prompt="a")
            client.generate({"traceparent": parent}, prompt="a", top_p=2)
        client.generate(prompt="a")
    told = [vars(line) for line in lines(caplog)]
    assert [line["traceparent"] for line in told[:2]] == [PARENT, PARENT]
    assert all("traceparent" not in line for line in told[2:])
    assert len(told) == 7


def test_every_path_has_a_line_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Client(FakeEngine()) as client:
        caplog.clear()
        client.get("/nothing", **{"X-Request-ID": "mine"})
    (line,) = [record for record in caplog.records if record.name == "server.request_id"]
    told = vars(line)
    assert (told["request_id"], told["method"], told["path"]) == ("mine", "GET", "/nothing")
    assert told["status"] == 404
    assert 0 < told["seconds"] < 60


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/version", "/metrics", "/v1/models", "/docs", "/openapi.json"]
)
def test_head_works_where_get_does(path: str) -> None:
    with Client(FakeEngine()) as client:
        whole, head = client.get(path), client.request("HEAD", path)
        assert head.status_code == whole.status_code == 200
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert "content-length" in head.headers
        assert not head.content
        assert client.request("HEAD", "/generate").status_code == 405


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd, gzip", "identity, gzip"])
def test_a_coded_body_is_refused_by_name(coding: str) -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        response = client.generate({"Content-Encoding": coding}, prompt="a")
        assert response.status_code == 415
        error = error_of(response)
        assert (error["param"], error["code"]) == (
            "Content-Encoding",
            "unsupported_content_encoding",
        )
        assert coding not in error["message"]
        for plain in ("identity", "Identity ", ""):
            assert client.generate({"Content-Encoding": plain}, prompt="a").status_code == 200


def test_who_still_sends_a_body_when_the_server_ends_is_told() -> None:
    async def scenario() -> Connection:
        connection = Connection(client)
        connection._body = b""
        running = asyncio.create_task(connection.run())
        await asyncio.sleep(0.01)
        running.cancel()  # as uvicorn does with what has not ended in time
        await running
        return connection

    with Client(FakeEngine()) as client:
        connection = client.run(scenario())
    assert connection.sent[0]["status"] == 503
    assert json.loads(connection.sent[1]["body"])["error"]["code"] == "draining"
    assert any(name == b"x-request-id" for name, _ in connection.sent[0]["headers"])
