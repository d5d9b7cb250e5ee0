"""Keys, bodies that are too large, and pages of other origins."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, encode, error_of, say
from test_metrics import scrape, value

PATHS = (
    "/version",
    "/metrics",
    "/redoc",
    "/docs/../version",
    "/v1/models",
    "/v1/models/fake",
    "/nothing",
    "/health/",
    "//health",
    "/",
)


OPEN = ("/health", "/ready", "/docs", "/docs/files/swagger-ui-bundle.js", "/openapi.json")


def guarded(**settings: Any) -> Client:
    return Client(FakeEngine(say(b"x")), api_keys=("first", "sec:ond"), **settings)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_path_but_health_and_readiness_wants_a_key() -> None:
    with guarded() as client:
        for path in OPEN:
            assert client.get(path).status_code == 200, path
        for path in PATHS:
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert error_of(response)["code"] == "invalid_api_key"
        assert client.generate(prompt="a").status_code == 401
        assert client.complete(prompt="a").status_code == 401
        assert client.request("OPTIONS", "/generate").status_code == 401
        for key in ("first", "sec:ond"):
            assert client.generate(bearer(key), prompt="a").status_code == 200
            assert client.complete(bearer(key), prompt="a").status_code == 200
            assert client.get("/nothing", **bearer(key)).status_code == 404


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"first",
        b"Bearer",
        b"Bearer ",
        b"Bearer firs",
        b"Bearer firstt",
        b"Bearer FIRST",
        b"Bearer first,sec:ond",
        b"Bearer fi\xe9rst",
        b"Basic first",
        b"Bearer  x first",
    ],
)
def test_what_is_no_key(authorization: bytes) -> None:
    with guarded() as client:
        response = client.request("GET", "/version", headers=[(b"Authorization", authorization)])
        assert response.status_code == 401
        assert client.get("/version", Authorization="bearer  first ").status_code == 200


def test_refusals_are_counted_and_keys_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), guarded(open_metrics=True) as client:
        client.generate(bearer("mistaken"), prompt="a")
        client.generate(bearer("first"), prompt="a")
        samples = scrape(client)
    assert value(samples, "request_rejected_total", reason="invalid_api_key") == 1
    for key in ("first", "sec:ond", "mistaken"):
        assert key not in caplog.text


def test_metrics_may_be_open() -> None:
    with guarded(open_metrics=True) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/version").status_code == 401


def test_without_keys_everything_is_open() -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        assert client.generate(prompt="a").status_code == 200
        assert client.generate(bearer("any"), prompt="a").status_code == 200


def test_bodies_have_a_bound() -> None:
    engine = FakeEngine(say(b"x"))
    with Client(engine, max_body_bytes=20) as client:
        assert client.post_raw(b'{"prompt":"a"}'.ljust(20)).status_code == 200
        response = client.post_raw(b'{"prompt":"a"}'.ljust(21))
        assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")
        assert client.complete(prompt=encode(b"a" * 20)).status_code == 413
    assert len(engine.submissions) == 1


def post_in_pieces(
    client: Client, receive: Callable[[], Awaitable[Any]], *more: tuple[bytes, bytes]
) -> int:
    """The status of a POST whose body is what `receive` gives, over bare ASGI."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), *more]
    scope = {"type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate"}
    client.run(client.app({**scope, "query_string": b"", "headers": headers}, receive, send))
    status: int = sent[0]["status"]
    return status


def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    taken = 0

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b" " * 100, "more_body": taken < 1000}

    with Client(FakeEngine(say(b"x")), max_body_bytes=450) as client:
        assert post_in_pieces(client, receive) == 413
    assert taken == 5


def test_a_body_that_says_to_be_too_large_is_not_asked_for() -> None:
    async def receive() -> dict[str, object]:
        raise AssertionError

    with Client(FakeEngine(say(b"x")), max_body_bytes=450) as client:
        assert post_in_pieces(client, receive, (b"content-length", b"451")) == 413


def test_a_body_has_to_come_in_time() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    with Client(FakeEngine(say(b"x")), client_seconds=0.1) as client:
        assert post_in_pieces(client, receive) == 408


@pytest.mark.parametrize("allowed", ["*", "https://a.org"])
def test_a_page_may_send_whatever_headers_its_client_has(allowed: str) -> None:
    """OpenAI's own client for browsers has a dozen."""
    names = (
        "authorization,content-type,openai-organization,openai-project,x-stainless-arch,"
        "x-stainless-retry-count,x-stainless-runtime"
    )
    asks = {
        "Origin": "https://a.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": names,
        "Access-Control-Request-Private-Network": "true",
    }
    with guarded(cors_origins=(allowed,)) as client:
        response = client.request("OPTIONS", "/v1/completions", headers=asks)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Headers"] == names
        assert response.headers["Access-Control-Allow-Origin"] == allowed
        assert response.headers["Access-Control-Allow-Private-Network"] == "true"


def test_pages_of_other_origins() -> None:
    origin = {"Origin": "https://a.org"}
    asks = {**origin, "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type,x-request-id"
    with guarded(cors_origins=("https://a.org",)) as client:
        # a browser asks first, without a key
        response = client.request("OPTIONS", "/generate", headers=asks)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.org"
        response = client.generate({**origin, **bearer("first")}, prompt="a")
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.org"
        # a page may read why it was refused
        response = client.generate(origin, prompt="a")
        assert response.status_code == 401
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.org"
        response = client.get("/health", Origin="https://b.org")
        assert "Access-Control-Allow-Origin" not in response.headers
        refused = client.request(
            "OPTIONS", "/generate", headers={**asks, "Origin": "https://b.org"}
        )
        assert refused.status_code == 400
        assert error_of(refused)["message"] == "Disallowed CORS origin"
        refused = client.request(
            "OPTIONS", "/generate", headers={**asks, "Access-Control-Request-Method": "DELETE"}
        )
        assert (refused.status_code, error_of(refused)["code"]) == (400, "cors_refused")
    with Client(FakeEngine(say(b"x"))) as client:
        response = client.generate(origin, prompt="a")
        assert "Access-Control-Allow-Origin" not in response.headers
        assert client.request("OPTIONS", "/generate", headers=asks).status_code == 405
