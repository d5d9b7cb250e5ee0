"""The bounded queue, with a clock that the test turns, and what a full one answers."""

import asyncio
from dataclasses import replace

import pytest
from fake_engine import Client, FakeEngine, error_of, say
from patience import until
from test_disconnect import Connection
from test_metrics import scrape, value

from server.admission import WINDOW_S, Admission
from server.errors import Impossible, Overloaded
from server.messages import FinishReason


def queue(waiting: int = 2, waiting_bytes: int = 100, longest_s: float = 600.0) -> Admission:
    return Admission(waiting, waiting_bytes, longest_s)


def fill(admission: Admission, count: int, size: int = 1, now: float = 0.0) -> None:
    for index in range(count):
        admission.enter(f"r{index}", size, now)


def retry_after(admission: Admission, now: float, slots: int = 1) -> int:
    with pytest.raises(Overloaded) as refusal:
        admission.check([1], slots, now)
    assert refusal.value.status == 429
    return int(refusal.value.headers["Retry-After"])


def test_so_many_may_wait_beside_those_that_run() -> None:
    admission = queue(waiting=2)
    for index in range(5):
        admission.check([1], 3, 0.0)
        admission.enter(f"r{index}", 1, 0.0)
    assert retry_after(admission, 0.0, slots=3) == 1
    admission.leave("r0", 0.0)
    admission.check([1], 3, 0.0)


def test_none_may_wait_where_the_queue_is_of_no_length() -> None:
    admission = queue(waiting=0, waiting_bytes=0)
    admission.check([50], 1, 0.0)
    fill(admission, 1, 50)
    retry_after(admission, 0.0)


def test_prompts_that_wait_are_bounded_in_bytes_and_those_that_run_are_not() -> None:
    admission = queue(waiting=10, waiting_bytes=100)
    admission.check([1000], 1, 0.0)
    admission.enter("running", 1000, 0.0)
    admission.check([60], 1, 0.0)
    admission.enter("first", 60, 0.0)
    with pytest.raises(Overloaded):
        admission.check([41], 1, 0.0)
    admission.check([40], 1, 0.0)
    # the first of those that wait takes the slot
    admission.leave("running", 0.0)
    admission.check([100], 1, 0.0)


def test_all_of_a_request_come_in_or_none() -> None:
    admission = queue(waiting=2)
    admission.check([1, 1, 1], 1, 0.0)
    fill(admission, 1)
    admission.check([1, 1], 1, 0.0)
    with pytest.raises(Overloaded):
        admission.check([1, 1, 1], 1, 0.0)


def test_what_never_fits_is_not_told_to_come_back() -> None:
    for sizes in ([1] * 4, [1, 101]):
        with pytest.raises(Impossible) as refusal:
            queue(waiting=2, waiting_bytes=100).check(sizes, 1, 0.0)
        assert refusal.value.param == "prompt"


def test_the_way_back_is_as_long_as_the_queue_takes() -> None:
    admission = queue(waiting=100)
    fill(admission, 101)
    # nothing has ended in 2 s: not more than one in two seconds
    assert retry_after(admission, 2.0) == 200
    for index in range(20):
        admission.leave(f"r{index}", 4.0)
        admission.enter(f"s{index}", 1, 4.0)
    assert retry_after(admission, 10.0) == 100 * 10 / 20
    # what ended long ago says nothing any more
    assert retry_after(admission, 4.1 + WINDOW_S) == 600


def test_an_idle_time_slows_nothing() -> None:
    admission = queue(waiting=10)
    fill(admission, 1)
    admission.leave("r0", 1.0)
    fill(admission, 11, now=1000.0)
    for index in range(5):
        admission.leave(f"r{index}", 1001.0)
        admission.enter(f"s{index}", 1, 1001.0)
    assert retry_after(admission, 1001.0) == 10 * 1 / 5


def test_a_full_queue_over_http() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        connections = [Connection(client, prompt="a") for _ in range(3)]
        running = [asyncio.create_task(connection.run()) for connection in connections]
        await until(lambda: len(engine.submissions) == 3)
        # the body is not even looked at
        late = Connection(client, rubbish=1)
        await late.run()
        assert late.sent[0]["status"] == 429
        assert int(dict(late.sent[0]["headers"])[b"retry-after"]) >= 1
        for connection in connections:
            connection.leave()
        await asyncio.gather(*running)

    with Client(engine, max_waiting=2) as client:
        engine.info = replace(engine.info, max_batch=1)
        client.run(scenario())
        assert len(engine.submissions) == 3
        engine._script = say(b"x")
        assert client.generate(prompt="a").status_code == 200
        assert value(scrape(client), "request_rejected_total", reason="overloaded") == 1


def test_prompts_beyond_the_queue_are_refused_for_good() -> None:
    with Client(FakeEngine(say(b"x"), max_batch=1), max_waiting=1) as client:
        assert client.complete(prompt=["a", "b"]).status_code == 200
        response = client.complete(prompt=["a", "b", "c"])
        assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


def test_timeouts_reach_the_engine() -> None:
    engine = FakeEngine(say(b"ab", reason=FinishReason.TIMEOUT))
    with Client(engine, max_seconds=60.0) as client:
        answer = client.generate(prompt="a", timeout_s=1.5).json()
        client.generate(prompt="a")
        client.generate(prompt="a", timeout_s=60)
        response = client.generate(prompt="a", timeout_s=60.5)
    assert (answer["finish_reason"], answer["text"]) == ("timeout", "ab")
    assert [submission.timeout_s for submission in engine.submissions] == [1.5, 60.0, 60.0]
    assert (response.status_code, error_of(response)["param"]) == (400, "timeout_s")
