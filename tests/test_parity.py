"""Requests that are decoded again by plain rounds: which, when, and what is told of them."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, Script, finished, say
from patience import until
from test_metrics import samples_in, scrape, value

from server.messages import Event, Exactness, Failed, FinishReason, Mode, Progress, Submission
from server.parity import ParityAudit

CHECKED = "parity_checks_total"
DIFFERED = "parity_mismatches_total"
SKIPPED = "parity_skipped_total"


def by_mode(base: Script, other: Script) -> Script:
    """What is written with drafts, and what without."""

    def script(submission: Submission) -> Iterable[Event]:
        return (base if submission.mode is Mode.BASE else other)(submission)

    return script


def settled(client: Client, checks: int, mode: str = "speculative") -> dict[str, float]:
    """The three counters once so many requests were checked or skipped."""
    told: dict[str, float] = {}

    async def wait() -> None:
        await until(lambda: counted() >= checks)

    def counted() -> float:
        samples = samples_in(client.app.state.service.metrics.exposition("")[0].decode())
        for name in (CHECKED, DIFFERED):
            told[name] = value(samples, name, mode=mode)
        told[SKIPPED] = value(samples, SKIPPED)
        return told[CHECKED] + told[SKIPPED]

    client.run(wait())
    return told


def test_one_request_in_so_many_is_decoded_again_without_drafts() -> None:
    engine = FakeEngine(say(b"ab", b"c", rest=b"d"))
    with Client(engine, parity_every=3) as client:
        for seed in range(6):
            client.generate(prompt="x", mode="base", seed=seed)
            client.generate(
                prompt="xy", mode="speculative", seed=seed, stop=["z"], temperature=0.5, echo=True,
                logprobs=2, timeout_s=7, request_id=f"id{seed}",
            )  # fmt: skip
        told = settled(client, 2)
    assert told == {CHECKED: 2, DIFFERED: 0, SKIPPED: 0}
    checks = [s for s in engine.submissions if "#" in s.request_id]
    assert [s.request_id for s in checks] == ["id2#parity", "id5#parity"]
    original = next(s for s in engine.submissions if s.request_id == "id2")
    check = checks[0]
    for same in ("prompt", "max_tokens", "params", "seed", "eos", "stops"):
        assert getattr(check, same) == getattr(original, same)
    assert (check.mode, check.draft_length, check.lookup_length) == (Mode.BASE, 0, 0)
    assert (check.echo, check.logprobs, check.awaited) == (False, None, False)


def test_checks_are_nobodys_requests() -> None:
    with Client(FakeEngine(say(b"abc")), parity_every=1) as client:
        client.generate(prompt="xy", mode="auto")
        settled(client, 1, "auto")
        samples = scrape(client)
    assert value(samples, "generation_tokens_total", mode="base") == 0
    assert value(samples, "generation_tokens_total", mode="auto") == 3
    assert value(samples, "prompt_tokens_total") == 2
    assert value(samples, "request_success_total", finished_reason="stop", mode="base") == 0


@pytest.mark.parametrize("every", [0, 2])
def test_without_being_picked_nothing_is_decoded_twice(every: int) -> None:
    engine = FakeEngine(say(b"abc"))
    with Client(engine, parity_every=every) as client:
        client.generate(prompt="xy", mode="speculative")
        assert value(scrape(client), CHECKED, mode="speculative") == 0
    assert len(engine.submissions) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("base", "first_difference"),
    [
        (say(b"abX", rest=b"d"), 2),
        (say(b"ab"), 2),
        (say(b"abcd", rest=b"e"), 4),
        (say(b"abc", rest=b"d", reason=FinishReason.LENGTH), 4),
    ],
    ids=["another byte", "fewer", "more", "another reason"],
)
@pytest.mark.parametrize("exactness", list(Exactness))
def test_a_difference_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
    stream: bool,
    base: Script,
    first_difference: int,
    exactness: Exactness,
) -> None:
    engine = FakeEngine(by_mode(base, say(b"a", b"bc", rest=b"d")), exactness=exactness)
    with Client(engine, parity_every=1) as client:
        client.generate(prompt="secret", mode="speculative", seed=5, stream=stream, request_id="r")
        told = settled(client, 1)
    assert told == {CHECKED: 1, DIFFERED: 1, SKIPPED: 0}
    (record,) = [r for r in caplog.records if r.name == "server.parity"]
    assert record.levelno == (logging.ERROR if exactness is Exactness.EXACT else logging.WARNING)
    fields = vars(record)
    assert (fields["request_id"], fields["mode"], fields["seed"]) == ("r", "speculative", 5)
    assert fields["first_difference"] == first_difference
    assert "secret" not in str(fields)


def failing(submission: Submission) -> Iterable[Event]:
    return [Progress(b"a"), Failed("a round failed")]


@pytest.mark.parametrize(
    "script",
    [
        by_mode(say(b"a"), say(b"a", reason=FinishReason.TIMEOUT)),
        by_mode(say(b"a"), say(b"a", reason=FinishReason.CANCELLED)),
        by_mode(say(b"a"), failing),
        by_mode(failing, say(b"a")),
    ],
    ids=["timeout", "cancelled", "failed", "failed again"],
)
def test_what_did_not_end_as_it_should_is_not_compared(script: Script) -> None:
    with Client(FakeEngine(script), parity_every=1) as client:
        client.generate(prompt="x", mode="speculative")
        assert settled(client, 1) == {CHECKED: 0, DIFFERED: 0, SKIPPED: 1}


class Patient(FakeEngine):
    """Writes what clients want at once, and checks when it is told to."""

    def __init__(self, **info: Any) -> None:
        super().__init__(say(b"abc"), **info)
        self.checks: list[str] = []

    def submit(self, submission: Submission, deliver: Any) -> None:
        if submission.request_id.endswith("#parity"):
            self.checks.append(submission.request_id)
            self._held[submission.request_id] = deliver
        else:
            super().submit(submission, deliver)

    def end_check(self) -> None:
        self._held.pop(self.checks[-1])(finished(3, b"abc"))


def test_a_check_gives_its_slot_to_a_client_and_is_not_begun_again() -> None:
    engine = Patient(max_batch=1)
    with Client(engine, parity_every=2) as client:
        for name in ("a", "b"):
            client.generate(prompt="x", mode="speculative", request_id=name)
        client.run(until(lambda: engine.checks == ["b#parity"]))
        assert client.generate(prompt="x", mode="speculative", request_id="c").status_code == 200
        assert engine.cancelled[:1] == ["b#parity"]
        assert settled(client, 1) == {CHECKED: 0, DIFFERED: 0, SKIPPED: 1}
        client.generate(prompt="x", mode="speculative", request_id="d")
        client.run(until(lambda: engine.checks == ["b#parity", "d#parity"]))
        engine.end_check()
        assert settled(client, 2) == {CHECKED: 1, DIFFERED: 0, SKIPPED: 1}


def test_while_there_is_another_slot_a_check_goes_on() -> None:
    engine = Patient(max_batch=3)
    with Client(engine, parity_every=2) as client:
        for name in ("a", "b", "c", "d"):
            client.generate(prompt="x", mode="speculative", request_id=name)
        assert engine.cancelled == []
        assert engine.checks == ["b#parity"]  # one at a time
        client.generate(prompt="x", mode="base", n=3)
        assert engine.cancelled == ["b#parity"]
        client.run(until(lambda: engine.checks[1:] == ["d#parity"]))
        engine.end_check()
        assert settled(client, 2) == {CHECKED: 1, DIFFERED: 0, SKIPPED: 1}


def test_only_so_many_wait() -> None:
    engine = Patient()
    most = ParityAudit.MOST_PENDING
    with Client(engine, parity_every=1) as client:
        for _ in range(most + 3):
            client.generate(prompt="x", mode="speculative")
        assert settled(client, 3) == {CHECKED: 0, DIFFERED: 0, SKIPPED: 3}
        for number in range(most):
            client.run(until(lambda number=number: len(engine.checks) == number + 1))
            engine.end_check()
        assert settled(client, most + 3) == {CHECKED: most, DIFFERED: 0, SKIPPED: 3}


def test_a_server_that_drains_does_not_wait_for_checks() -> None:
    engine = Patient()
    with Client(engine, parity_every=1) as client:
        for _ in range(2):
            client.generate(prompt="x", mode="speculative")
        service = client.app.state.service

        async def drain() -> None:
            service.draining = True
            assert await service.drain()

        client.run(drain())
        # the one under way has ended, which is when the other would have begun
        assert settled(client, 1) == {CHECKED: 0, DIFFERED: 0, SKIPPED: 1}
        assert len(engine.cancelled) == len(engine.checks) == 1
    assert engine.stopped


@pytest.mark.parametrize("dies", [False, True])
def test_an_engine_that_died_is_asked_nothing(dies: bool) -> None:
    """Whether there is a check is settled with the request's last event, before it is answered."""

    def dying(submission: Submission) -> Iterable[Event]:
        engine.now = replace(engine.now, alive=not dies)
        return say(b"a")(submission)

    engine = FakeEngine(dying)
    with Client(engine, parity_every=1) as client:
        client.generate(prompt="x", mode="speculative")
        assert len(engine.submissions) == (1 if dies else 2)
