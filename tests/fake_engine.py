"""An engine that plays scripts instead of running a model, and a client of an app around it."""

import asyncio
import base64
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self

import httpx
from fastapi import FastAPI
from patience import until

from server.app import create_app
from server.ledger import Figures
from server.messages import (
    EngineInfo,
    EngineStatus,
    Event,
    Exactness,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Speculation,
    Submission,
    Timing,
)
from server.settings import Settings

INFO = EngineInfo(
    model_name="fake",
    device="cpu",
    dtype="float32",
    exactness=Exactness.EXACT,
    context=64,
    max_batch=4,
    eos=0,
    longest_draft=8,
    longest_lookup=0,
    parameters=1000,
    prophet_parameters=100,
    cache_bytes=4096,
)
STATUS = EngineStatus(
    running=0, waiting=0, rounds=0, idle=True, seconds_since_progress=0.0, alive=True
)
SPECULATION = Speculation(
    rounds=2, drafts=2, drafted=8, accepted=3, accepted_per_position=(2, 1, 0, 0)
)
TIMING = Timing(queue_s=0.25, prefill_s=0.5, decode_s=2.0, first_byte_s=1e-6)

Script = Callable[[Submission], Iterable[Event]]


def finished(count: int, output: bytes = b"", reason: FinishReason = FinishReason.STOP) -> Finished:
    return Finished(output, reason, count, SPECULATION, TIMING)


def say(*pieces: bytes, rest: bytes = b"", reason: FinishReason = FinishReason.STOP) -> Script:
    """Each piece as a `Progress`, then the end with `rest`."""
    count = len(b"".join(pieces) + rest)
    events: list[Event] = [Progress(piece) for piece in pieces]
    events.append(finished(count, rest, reason))
    return lambda submission: events


class FakeEngine:
    """Plays `script` for each request on a thread of its own; without one, waits to be cancelled.

    A held request has sent one `Progress`, so that its stream has begun.  Stopping fails what is
    held and knows nothing of scripts, which then are like rounds that hang.
    """

    def __init__(self, script: Script | None = None, **info: Any) -> None:
        self.info = replace(INFO, **info)
        self.now = STATUS
        self.told = Figures()
        self.stopped = False
        self.submissions: list[Submission] = []
        self.cancelled: list[str] = []
        self._script = script
        self._held: dict[str, Callable[[Event], None]] = {}

    def submit(self, submission: Submission, deliver: Callable[[Event], None]) -> None:
        if self._script is None:
            self._held[submission.request_id] = deliver
        self.submissions.append(submission)
        threading.Thread(target=self._play, args=(submission, deliver), daemon=True).start()

    def _play(self, submission: Submission, deliver: Callable[[Event], None]) -> None:
        if self._script is None:
            deliver(Progress(b"held"))
            return
        for event in self._script(submission):
            deliver(event)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        deliver = self._held.pop(request_id, None)
        if deliver is not None:
            deliver(finished(4, reason=FinishReason.CANCELLED))

    def status(self) -> EngineStatus:
        return self.now

    def figures(self) -> Figures:
        return self.told

    def stop(self) -> None:
        self.stopped = True
        for deliver in self._held.values():
            deliver(Failed("the server is shutting down"))
        self._held.clear()


def app_of(engine: FakeEngine, **settings: Any) -> FastAPI:
    """An app around an engine; no variable changes its settings, as conftest.py sees to."""
    return create_app(Settings.model_validate(settings), lambda _: engine)


class Client:
    """An app and an HTTP client of it without a network; the loop runs while a call does."""

    def __init__(self, engine: FakeEngine, **settings: Any) -> None:
        self.app = app_of(engine, **settings)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.run(self._lifespan.__aenter__())
        self.run(until(lambda: not self.app.state.service.loading))
        assert self.get("/ready").status_code == 200
        return self

    def __exit__(self, *exception: object) -> None:
        self.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **arguments)

        response: httpx.Response = self.run(once())
        return response

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request("GET", path, headers=headers)

    def generate(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.request("POST", "/generate", json=fields, headers=headers)

    def complete(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.request("POST", "/v1/completions", json=fields, headers=headers)

    def post_raw(self, body: bytes, content_type: str = "application/json") -> httpx.Response:
        headers = {"Content-Type": content_type}
        return self.request("POST", "/generate", content=body, headers=headers)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response in the envelope, and in nothing else."""
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    expected = "server_error" if response.status_code >= 500 else "invalid_request_error"
    assert error["type"] == ("overloaded_error" if response.status_code == 429 else expected)
    return error
