"""What arrives from the engine's thread, in order, joined where nobody reads it fast enough."""

import asyncio
import doctest
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import finished
from hypothesis import given
from hypothesis import strategies as st
from set_times import run_eagerly

import server.flight
import server.messages
from server.errors import EngineError
from server.flight import MOST_QUEUED, Flight
from server.messages import Event, Failed, FinishReason, Progress, joined


def flight(choices: int = 1, seen: list[Event] | None = None) -> Flight:
    record = seen if seen is not None else []
    return Flight(choices, lambda _: None, lambda _, event: record.append(event))


def whole(events: list[tuple[int, Event]], choice: int = 0) -> bytes:
    return b"".join(
        event.output for index, event in events if index == choice and not isinstance(event, Failed)
    )


def test_the_worked_examples() -> None:
    result = doctest.testmod(server.messages)
    assert result.attempted > 0
    assert result.failed == 0


def test_events_cross_threads_in_order() -> None:
    seen: list[Event] = []
    pieces: list[Event] = [Progress(bytes([i])) for i in range(200)]

    async def scenario() -> None:
        aloft = flight(seen=seen)
        deliver = aloft.receiver(0)

        def play() -> None:
            for piece in pieces:
                deliver(piece)
            deliver(finished(200))

        threading.Thread(target=play).start()
        events: list[tuple[int, Event]] = []
        while not events or isinstance(events[-1][1], Progress):
            events += await aloft.next_events()
        assert [event for _, event in events] == [*pieces, finished(200)]
        assert aloft.landed

    asyncio.run(scenario())
    assert seen == [*pieces, finished(200)]


def test_a_closed_loop_is_no_trouble_to_the_engine() -> None:
    async def make() -> Callable[[Event], None]:
        return flight().receiver(0)

    asyncio.run(make())(finished(0))


def test_only_what_is_aloft_is_cancelled() -> None:
    cancelled: list[int] = []

    async def scenario() -> None:
        aloft = Flight(3, cancelled.append, lambda _, event: None)
        aloft.cancel()
        for choice in (1, 0):
            aloft.receiver(choice)(finished(0, reason=FinishReason.CANCELLED))
            await aloft.next_events()
            aloft.cancel()

    asyncio.run(scenario())
    assert cancelled == [0, 1, 2, 0, 2, 2]


def test_output_that_nobody_reads_is_joined() -> None:
    """Single bytes become one string in the end, not as many records."""
    seen: list[Event] = []
    output = bytes(i % 251 for i in range(2**17))

    async def scenario() -> None:
        aloft = flight(2, seen)
        most = 0
        for index in range(len(output)):
            aloft._arrive(0, Progress(output[index : index + 1]))
            most = max(most, len(aloft._queue))
        aloft._arrive(1, Progress(b"other"))
        aloft._arrive(0, finished(len(output)))
        assert most <= 2 * MOST_QUEUED
        events = await aloft.next_events()
        assert len(events) < 2 * MOST_QUEUED
        assert (whole(events), whole(events, 1)) == (output, b"other")
        assert isinstance(events[0][1], Progress)

    asyncio.run(scenario())
    assert len(seen) == len(output) + 2


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=3)), max_size=30))
def test_joining_keeps_every_choice_whole(pieces: list[tuple[int, bytes]]) -> None:
    events: list[tuple[int, Event]] = [(c, Progress(output)) for c, output in pieces]
    result = joined([*events, (1, finished(9))])
    assert len(result) <= 4
    assert result[-1] == (1, finished(9))
    for choice in range(3):
        assert whole(result, choice) == whole(events, choice)


def test_an_echoed_prompt_stays_apart_from_the_output() -> None:
    echo, output = Progress(b"ab", echo=True), Progress(b"cd")
    assert joined([(0, echo), (0, output)]) == [(0, echo), (0, output)]


def test_waiting_until_a_time_collects_output_and_the_end_cuts_it_short() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        aloft = flight()
        deliver = aloft.receiver(0)
        began = loop.time()
        for delay in (0.0, 0.01, 0.02):
            loop.call_later(delay, deliver, Progress(b"x"))
        assert await aloft.next_events(began + 0.1) == [(0, Progress(b"xxx"))]
        assert loop.time() == pytest.approx(began + 0.1)
        loop.call_later(0.01, deliver, Progress(b"y"))
        loop.call_later(0.02, deliver, finished(4))
        events = await aloft.next_events(loop.time() + 1000)
        assert events == [(0, Progress(b"y")), (0, finished(4))]
        assert loop.time() == pytest.approx(began + 0.12)

    run_eagerly(scenario())


def test_a_failure_waits_for_no_time() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        aloft = flight(2)
        aloft.receiver(0)(Progress(b"x"))
        loop.call_later(0.01, aloft.receiver(1), Failed("no"))
        events = await aloft.next_events(loop.time() + 1000)
        assert events == [(0, Progress(b"x")), (1, Failed("no"))]
        assert loop.time() < 1

    run_eagerly(scenario())


def test_an_outcome_has_every_choice_in_its_place() -> None:
    async def scenario() -> Any:
        aloft = flight(2)
        for choice, event in (
            (1, Progress(b"b")),
            (0, Progress(b"a")),
            (1, finished(2, b"c")),
            (0, finished(1)),
        ):
            aloft.receiver(choice)(event)
        return await aloft.outcome()

    assert asyncio.run(scenario()) == [finished(1, b"a"), finished(2, b"bc")]


def test_failing_from_this_side_is_the_last_event() -> None:
    seen: list[Event] = []

    async def scenario() -> None:
        aloft = flight(2, seen)
        aloft._arrive(1, finished(0))
        aloft.fail("over")
        aloft._arrive(0, finished(0))
        with pytest.raises(EngineError, match="over"):
            await aloft.outcome()

    asyncio.run(scenario())
    assert seen == [finished(0), Failed("over")]
