"""The OpenAPI document and the page that shows it: valid, usable by generators, offline."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, app_of, say
from live import live
from openapi_spec_validator import validate

METHODS = {"get", "post", "head", "put", "delete", "options", "patch"}


def document(**settings: Any) -> dict[str, Any]:
    return app_of(FakeEngine(say(b"x")), **settings).openapi()


@pytest.mark.parametrize("settings", [{}, {"api_keys": ("key",)}])
def test_the_document_is_valid_and_of_a_version_that_generators_read(
    settings: dict[str, Any],
) -> None:
    told = document(**settings)
    assert told["openapi"].startswith("3.1.")
    assert told["servers"] == [{"url": "/"}]
    validate(told)  # type: ignore[arg-type]


def test_every_request_and_answer_has_a_name() -> None:
    told = document()
    names = told["components"]["schemas"].keys()
    assert {"GenerateRequest", "CompletionRequest", "Answer", "Completion", "Piece"} <= names
    operations = [op for path in told["paths"].values() for op in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len({*ids}) == len(ids)
    assert "generate" in ids


def test_keys_are_told_where_they_are_wanted() -> None:
    free = document()
    assert free["security"] == [{}, {"key": []}]
    locked = document(api_keys=("key",), open_metrics=True)
    assert locked["security"] == [{"key": []}]
    own = {
        path: op["security"]
        for path, ops in locked["paths"].items()
        for op in ops.values()
        if "security" in op
    }
    assert own == {"/health": [], "/ready": [], "/metrics": []}
    assert locked["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_the_page_asks_nobody_else() -> None:
    with Client(FakeEngine(say(b"x"))) as client:
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert not re.findall(r"https?://|src=.//", page.text)
        files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(files) >= 3  # script, style, icon
        for path in files:
            answer = client.get(path)
            assert (answer.status_code, bool(answer.content)) == (200, True), path
        assert '"validatorUrl": null' in page.text
        assert client.get("/redoc").status_code == 404


def test_a_generated_client_completes_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, package = tmp_path / "openapi.json", tmp_path / "generated_client"
    file.write_text(json.dumps(document(api_keys=("key",))), "utf-8")
    scripts = Path(sys.executable).parent
    tool = scripts / "openapi-python-client"
    command = [tool, "generate", "--path", file, "--output-path", package, "--meta", "none"]
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"  # it formats with ruff
    made = subprocess.run(
        [*command, "--fail-on-warning"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert made.returncode == 0, made.stdout + made.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    generated = importlib.import_module("generated_client")
    models = importlib.import_module("generated_client.models")
    completions = importlib.import_module("generated_client.api.default.completions")
    with (
        live(app_of(FakeEngine(say(b"text")), api_keys=("key",))) as url,
        generated.AuthenticatedClient(base_url=url, token="key") as client,
    ):
        body = models.CompletionRequest(prompt="a", max_tokens=4)
        answer = completions.sync(client=client, body=body)
    assert [choice.text for choice in answer.choices] == ["text"]
