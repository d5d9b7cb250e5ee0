"""From the engine's thread to the wire, piece by piece."""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, encode, finished, say
from hypothesis import given
from hypothesis import strategies as st
from patience import until
from set_times import run_eagerly

from server.errors import ApiError
from server.flight import MOST_QUEUED, Flight
from server.messages import Failed, Finished, FinishReason, Progress
from server.streaming import KEEP_ALIVE, EventStream, OutputEncoder, server_sent_event


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
    assert all(event.keys() == {"index", "text", "bytes"} for event in events[:-1])


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
    events = stream(FakeEngine(lambda _: [Progress(b"x"), Failed("a round failed")]))
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


class Wire:
    """A bare ASGI connection to one stream, whose reader the test can hold up."""

    def __init__(self) -> None:
        self.sent = b""
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.open = asyncio.Event()
        self.open.set()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if body := message.get("body"):
            self.sent += body
            self.bodies.append(body)
            self.times.append(asyncio.get_running_loop().time())
            await self.open.wait()


class PlainForm:
    """Output as it is, so that a test sees the pieces."""

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        yield event.output or b"end"

    def error(self, error: ApiError) -> Iterator[bytes]:
        yield error.message.encode()

    def end(self) -> Iterator[bytes]:
        yield b"[DONE]"


def play(script: Callable[[Flight, Wire], Coroutine[Any, Any, None]], **arguments: Any) -> Wire:
    """What a stream sends while the script delivers events."""

    async def scenario() -> Wire:
        flight = Flight(1, lambda _: None, lambda *_: None)
        wire = Wire()
        response = EventStream(flight, PlainForm(), **arguments)
        sending = asyncio.create_task(response({"type": "http"}, wire.receive, wire.send))
        await script(flight, wire)
        await sending
        return wire

    return run_eagerly(scenario())


def test_silence_is_broken_by_comments() -> None:
    async def script(flight: Flight, wire: Wire) -> None:
        await until(lambda: wire.sent.count(KEEP_ALIVE) >= 3)
        flight.receiver(0)(Progress(b"late"))
        flight.receiver(0)(finished(4))

    wire = play(script, keep_alive_s=0.002)
    assert wire.bodies.count(KEEP_ALIVE) >= 3
    output = [body for body in wire.bodies if not body.startswith(b":")]
    assert b"|".join(output) in (b"late|end|[DONE]", b"lateend|[DONE]")


def test_a_comment_is_no_event() -> None:
    """As the HTML standard has it: an empty line ends an event, and some clients hand on one that
    has no data.  So no empty line stands before or behind a comment that none belongs to."""
    assert KEEP_ALIVE == b": keep-alive\n"
    events = 0
    between = server_sent_event({"index": 0}) + KEEP_ALIVE + KEEP_ALIVE + server_sent_event({})
    for line in between.split(b"\n")[:-1]:
        events += not line
    assert events == 2


def test_an_interval_lets_output_pile_up() -> None:
    async def script(flight: Flight, wire: Wire) -> None:
        deliver = flight.receiver(0)
        for _ in range(30):
            deliver(Progress(b"x"))
            await asyncio.sleep(0.0063)
        await until(lambda: wire.sent == b"x" * 30)
        deliver(finished(30))

    wire = play(script, interval=0.05)
    assert wire.sent == b"x" * 30 + b"end[DONE]"
    *pieces, _, _ = wire.bodies
    assert [len(piece) for piece in pieces] == [1, 7, 8, 8, 6]
    assert wire.times[:5] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_an_interval_holds_up_neither_comments_nor_the_end() -> None:
    async def script(flight: Flight, wire: Wire) -> None:
        flight.receiver(0)(Progress(b"first"))
        await until(lambda: b"first: keep-alive" in wire.sent)
        flight.receiver(0)(Progress(b"second"))
        flight.receiver(0)(finished(11))

    wire = play(script, interval=1000.0, keep_alive_s=0.002)
    assert wire.sent.replace(KEEP_ALIVE, b"") == b"firstsecondend[DONE]"


def test_a_slow_reader_gets_larger_pieces() -> None:
    count = 20 * MOST_QUEUED

    async def script(flight: Flight, wire: Wire) -> None:
        deliver = flight.receiver(0)
        wire.open.clear()
        deliver(Progress(b"0"))
        await until(lambda: wire.bodies)
        for index in range(1, count):
            deliver(Progress(str(index % 10).encode()))
        deliver(finished(count))
        await until(lambda: flight.landed)
        wire.open.set()

    wire = play(script)
    assert wire.sent == b"0123456789" * (count // 10) + b"end[DONE]"
    assert len(wire.bodies) < MOST_QUEUED + 5


def test_intervals_and_timeouts_over_http() -> None:
    events = stream(
        FakeEngine(say(b"a", b"b", rest=b"c", reason=FinishReason.TIMEOUT)), stream_interval=0.5
    )
    assert whole(events) == ("abc", b"abc")
    assert events[-1]["finish_reason"] == "timeout"
