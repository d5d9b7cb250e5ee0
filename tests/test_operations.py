"""Loading, health, version and documentation."""

import asyncio
import logging
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import INFO, STATUS, Client, FakeEngine, error_of, say
from patience import PATIENCE_S, until, wait_until_set

from server.answers import Version
from server.app import create_app
from server.settings import Settings


def test_before_and_after_loading() -> None:
    loaded = threading.Event()
    engine = FakeEngine(say(b"x"))

    def load(_: Settings) -> FakeEngine:
        wait_until_set(loaded)
        return engine

    async def scenario() -> None:
        app = create_app(Settings(), load)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert (await client.get("/health")).json() == {"status": "loading"}
            for path in ("/ready", "/version"):
                response = await client.get(path)
                assert (response.status_code, error_of(response)["code"]) == (503, "loading")
            response = await client.post("/generate", json={"prompt": "a"})
            assert response.status_code == 503
            assert "specdec_model_info" not in (await client.get("/metrics")).text
            loaded.set()
            await until(lambda: not app.state.service.loading)
            assert (await client.get("/ready")).status_code == 200
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert not engine.stopped
        assert engine.stopped

    asyncio.run(scenario())


@pytest.mark.parametrize("mistake", [ValueError("config.json: no"), RuntimeError("unforeseen")])
def test_a_model_that_cannot_be_loaded(
    mistake: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def load(_: Settings) -> FakeEngine:
        raise mistake

    async def scenario() -> None:
        app = create_app(Settings(), load)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            await until(lambda: caplog.records)
            for path in ("/health", "/ready", "/version"):
                response = await client.get(path)
                assert (response.status_code, error_of(response)["code"]) == (503, "not_loaded")

    with caplog.at_level(logging.ERROR, logger="server"):
        asyncio.run(scenario())
    (record,) = caplog.records
    # a traceback is for mistakes that are not the user's
    assert (record.exc_info is None) == isinstance(mistake, ValueError)
    if isinstance(mistake, ValueError):
        assert record.getMessage().endswith("config.json: no")


def test_without_a_model_the_process_ends_with_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--port", "0", "--log-level", "error"]
    ended = subprocess.run(
        [*command, "--checkpoint", tmp_path], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "config.json" in line


@pytest.mark.parametrize(
    ("change", "health", "ready"),
    [
        ({}, 200, 200),
        ({"seconds_since_progress": 1e6}, 200, 200),
        ({"running": 1, "seconds_since_progress": 29.0}, 200, 200),
        ({"running": 1, "seconds_since_progress": 31.0}, 503, 200),
        ({"waiting": 1, "seconds_since_progress": 31.0}, 503, 200),
        ({"alive": False}, 503, 503),
        ({"failures": 4}, 200, 200),
        ({"failures": 5}, 503, 200),
    ],
)
def test_health_is_progress(change: dict[str, Any], health: int, ready: int) -> None:
    engine = FakeEngine(say())
    with Client(engine) as client:
        engine.now = replace(STATUS, **change)
        assert client.get("/health").status_code == health
        assert client.get("/ready").status_code == ready
        assert (client.generate(prompt="a").status_code == 200) == (ready == 200)


def test_version() -> None:
    with Client(FakeEngine(say())) as client:
        told = client.get("/version").json()
    assert told.pop("version")
    assert told.pop("model") == "fake"
    assert told == {
        field.name: getattr(INFO, field.name)
        for field in fields(INFO)
        if field.name != "model_name"
    }
    assert told.keys() < Version.model_fields.keys()


def test_openapi_is_complete() -> None:
    with Client(FakeEngine(say())) as client:
        document = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 200
    operation = document["paths"]["/generate"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].removeprefix("#/components/schemas/")
    schema = document["components"]["schemas"][name]
    assert {"prompt", "prompt_bytes", "seed"} < schema["properties"].keys()
    statuses = {200, 400, 401, 408, 409, 413, 415, 422, 429, 500, 503}
    assert operation["responses"].keys() == {str(status) for status in statuses}
    completions = document["paths"]["/v1/completions"]["post"]
    assert completions["responses"].keys() == {str(status) for status in statuses - {422} | {404}}
    for ref in _references(document):
        target = document
        for step in ref.removeprefix("#/").split("/"):
            target = target[step]


def test_openapi_says_where_a_key_is_wanted() -> None:
    with Client(FakeEngine(say()), api_keys=("secret",)) as client:
        headers = {"Authorization": "Bearer secret"}
        document = client.request("GET", "/openapi.json", headers=headers).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    wants = {
        path: operation.get("security", document["security"])
        for path, operations in document["paths"].items()
        for operation in operations.values()
    }
    assert wants.pop("/health") == wants.pop("/ready") == []
    assert wants
    assert all(security == [{"key": []}] for security in wants.values())


def _references(node: Any) -> list[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node["$ref"]] if isinstance(node, dict) and "$ref" in node else []
    return own + [ref for child in children for ref in _references(child)]


def test_documented_examples_work() -> None:
    with Client(FakeEngine(say(b"x"), context=256)) as client:
        document = client.get("/openapi.json").json()
        for path, ask in (("/generate", client.generate), ("/v1/completions", client.complete)):
            body = document["paths"][path]["post"]["requestBody"]["content"]
            for example in body["application/json"]["examples"].values():
                assert ask(**example["value"]).status_code == 200
