"""Clients that leave, over bare ASGI, where the moment is the test's to choose."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, say
from patience import until

from server.messages import FinishReason


class Connection:
    """One request over bare ASGI, whose client can leave."""

    def __init__(self, client: Client, **request: Any) -> None:
        self._body = json.dumps(request).encode()
        self._client = client
        self._gone = asyncio.Event()
        self.sent: list[MutableMapping[str, Any]] = []
        self.begun = asyncio.Event()

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.begun.set()

    def leave(self) -> None:
        self._gone.set()

    async def run(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "method": "POST",
            "path": "/generate",
            "raw_path": b"/generate",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await self._client.app(scope, self._receive, self._send)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels(stream: bool) -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        connection = Connection(client, prompt="a", request_id="r", stream=stream)
        running = asyncio.create_task(connection.run())
        await until(lambda: engine.submissions)
        if stream:
            await connection.begun.wait()
        assert not running.done()
        connection.leave()
        await running

    with Client(engine) as client:
        client.run(scenario())
        assert engine.cancelled == ["r"]
        # its id is free again
        client.run(scenario())
        assert engine.cancelled == ["r", "r"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_handler_that_is_killed_cancels(stream: bool) -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        connection = Connection(client, prompt="a", request_id="r", stream=stream)
        running = asyncio.create_task(connection.run())
        await until(lambda: engine.submissions)
        running.cancel()
        await asyncio.wait([running])

    with Client(engine) as client:
        client.run(scenario())
        assert engine.cancelled == ["r"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_stays_cancels_nothing(stream: bool) -> None:
    engine = FakeEngine(say(b"abc"))
    with Client(engine) as client:
        client.run(Connection(client, prompt="a", stream=stream).run())
    assert not engine.cancelled


def test_a_client_that_leaves_in_its_body() -> None:
    engine = FakeEngine(say())

    async def scenario() -> None:
        connection = Connection(client)
        connection._body = b""
        connection.leave()
        await connection.run()
        assert connection.sent[0]["status"] == 499

    with Client(engine) as client:
        client.run(scenario())
    assert not engine.submissions


def test_an_id_in_flight_is_refused() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        first = Connection(client, prompt="a", request_id="r")
        running = asyncio.create_task(first.run())
        await until(lambda: engine.submissions)
        second = Connection(client, prompt="a", request_id="r")
        await second.run()
        assert second.sent[0]["status"] == 409
        assert json.loads(second.sent[1]["body"])["error"]["param"] == "request_id"
        assert not engine.cancelled
        first.leave()
        await running
        assert first.sent[0]["status"] == 200
        answer = json.loads(first.sent[1]["body"])
        assert (answer["finish_reason"], answer["text"]) == (FinishReason.CANCELLED, "held")

    with Client(engine) as client:
        client.run(scenario())
    assert len(engine.submissions) == 1
