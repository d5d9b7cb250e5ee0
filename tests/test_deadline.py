"""Bodies on their way to clients that are slow."""

import asyncio
import logging

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.deadline import PIECE, ReadDeadline


def sent(body: bytes, *, waits_from: int = 1 << 40) -> list[Message]:
    """What a client is sent that takes nothing any more from so many bytes on."""
    taken: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        if sum(len(each.get("body", b"")) for each in taken) >= waits_from:
            await asyncio.Event().wait()
        taken.append(message)

    scope = {"type": "http", "state": {"request_id": "mine"}}
    asyncio.run(ReadDeadline(app, 0.05)(scope, receive, send))
    return taken


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 7])
def test_a_body_is_sent_in_parts(size: int) -> None:
    body = bytes(i % 251 for i in range(size))
    start, *parts = sent(body)
    assert start["type"] == "http.response.start"
    assert b"".join(part["body"] for part in parts) == body
    assert len(parts) == max(1, -(-size // PIECE))
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]


def test_a_client_that_takes_a_part_and_no_more_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        _, *parts = sent(bytes(5 * PIECE), waits_from=2 * PIECE)
    assert len(parts) == 2
    assert "not taken in a part of its answer in 0.05 s" in caplog.text
    (line,) = caplog.records
    assert vars(line)["request_id"] == "mine"
