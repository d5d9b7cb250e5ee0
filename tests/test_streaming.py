"""From the engine's thread to the wire, piece by piece."""

import asyncio
import base64
import json
import threading
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, encode, finished, say
from hypothesis import given
from hypothesis import strategies as st

from server.messages import Event, Failed, FinishReason, Progress
from server.streaming import Flight, OutputEncoder, server_sent_event


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Parses a stream as a browser does: a blank line ends an event, any line end ends a line."""
    assert body.endswith(b"\n\n")
    events = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        (line,) = block.splitlines()
        assert line.startswith("data: ")
        events.append(json.loads(line.removeprefix("data: ")))
    return events


def stream(engine: FakeEngine, **fields: Any) -> list[dict[str, Any]]:
    with Client(engine) as client:
        response = client.generate(prompt="a", stream=True, **fields)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.content)


def whole(events: list[dict[str, Any]]) -> tuple[str, bytes]:
    text = "".join(event["text"] for event in events)
    return text, b"".join(base64.b64decode(event["bytes"], validate=True) for event in events)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"one", b"two"],
        [b"a\nb\r\n", b"\n\ndata: x\n\n", "\u2028\u2029\x85".encode()],
        [b"\xf0", b"\x9f", b"\x98", b"\x80"],
        [b"\xe2\x82", b"\xac\xe2"],
        [b"\xff\xfe", b"\x80", b"\xc3"],
        [b"\x00", b"\x00\xed\xa0\x80"],
        [],
    ],
)
@pytest.mark.parametrize("rest", [b"", b"\xac rest"])
def test_pieces_add_up_to_the_output(pieces: list[bytes], rest: bytes) -> None:
    output = b"".join(pieces) + rest
    events = stream(FakeEngine(say(*pieces, rest=rest)))
    assert whole(events) == (output.decode(errors="replace"), output)
    assert len(events) == len(pieces) + 1
    assert all(event.keys() == {"text", "bytes"} for event in events[:-1])


def test_only_an_incomplete_character_is_held_back() -> None:
    events = stream(FakeEngine(say(b"a\xf0\x9f\x98", b"\x80b\xe2\x82", b"c")))
    assert [event["text"] for event in events] == ["a", "😀b", "\ufffdc", ""]


@given(st.lists(st.binary(max_size=6)))
def test_text_of_any_cut_is_that_of_the_whole(pieces: list[bytes]) -> None:
    encoder = OutputEncoder()
    events = [encoder.encode(piece) for piece in pieces] + [encoder.encode(b"", final=True)]
    output = b"".join(pieces)
    assert whole(events) == (output.decode(errors="replace"), output)


@given(st.text(st.characters(exclude_categories=[])))
def test_events_are_one_line_of_ascii(text: str) -> None:
    event = server_sent_event({"text": text})
    assert event.isascii()
    assert len(event.splitlines()) == 2
    assert events_of(event) == [{"text": text}]


def test_the_last_event_is_the_answer() -> None:
    with Client(FakeEngine(say(b"ab", rest=b"\xff"))) as client:
        plain = client.generate(prompt="a", seed=7, request_id="me").json()
        response = client.generate(prompt="a", seed=7, request_id="me", stream=True)
    last = events_of(response.content)[-1]
    assert response.headers["X-Request-ID"] == "me"
    assert response.headers["Cache-Control"] == "no-cache"
    assert last == {**plain, "text": "\ufffd", "bytes": encode(b"\xff")}
    assert (last["utf8_valid"], last["usage"]["completion_tokens"]) == (False, 3)
    assert (last["finish_reason"], last["seed"]) == ("stop", 7)


def test_an_error_in_the_stream_is_its_last_event() -> None:
    events = stream(FakeEngine(lambda _: [Progress(b"x", 0.1), Failed("a round failed")]))
    assert events[0]["text"] == "x"
    assert events[1:] == [
        {
            "error": {
                "message": "a round failed",
                "type": "server_error",
                "param": None,
                "code": "engine_error",
            }
        }
    ]


def test_errors_before_the_stream_are_plain() -> None:
    with Client(FakeEngine(say())) as client:
        response = client.generate(prompt="a", stream=True, max_tokens=1000)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


def test_events_cross_threads_in_order() -> None:
    seen: list[Event] = []

    async def scenario() -> None:
        flight = Flight(lambda: None, seen.append)
        pieces = [Progress(bytes([i]), 0.1) for i in range(200)]

        def play() -> None:
            for piece in pieces:
                flight.deliver(piece)
            flight.deliver(finished(200))

        threading.Thread(target=play).start()
        assert [await flight.next_event() for _ in range(201)] == [*pieces, finished(200)]

    asyncio.run(scenario())
    assert len(seen) == 201


def test_a_closed_loop_is_no_trouble_to_the_engine() -> None:
    async def make() -> Flight:
        return Flight(lambda: None, lambda event: None)

    asyncio.run(make()).deliver(finished(0))


def test_a_flight_that_has_landed_is_not_cancelled() -> None:
    cancelled: list[bool] = []

    async def scenario() -> None:
        flight = Flight(lambda: cancelled.append(True), lambda event: None)
        flight.cancel()
        flight.deliver(finished(0, reason=FinishReason.CANCELLED))
        await flight.next_event()
        flight.cancel()

    asyncio.run(scenario())
    assert cancelled == [True]
