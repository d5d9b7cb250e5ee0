"""The engine thread: mixed batches, cancellation, a failing round, a hanging one, a clean stop."""

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fakes import FakeDrafter, HashModel, sometimes_right
from gate import Gate
from graph_decoders import fake_graph_decoder, run_ahead, torch_graph_decoder
from patience import eventually, wait_until_set
from set_times import set_times
from test_scheduler import submission
from tiny import CPU, agreeing_prophet, tiny_decoder, tiny_model

from server.engine import Engine
from server.messages import (
    EngineInfo,
    Event,
    Exactness,
    Failed,
    Finished,
    FinishReason,
    Mode,
    Progress,
    Submission,
)
from server.round_costs import RoundCosts
from specdec.build import build_decoder
from specdec.decoder import Decoder, Job, generate
from specdec.round import MOST_ROUNDS, Broken
from specdec.sampling import SamplingParams

INFO = EngineInfo(
    model_name="fake",
    device="cpu",
    dtype="float64",
    exactness=Exactness.EXACT,
    context=160,
    max_batch=4,
    eos=0,
    longest_draft=16,
    longest_lookup=0,
    parameters=1,
    prophet_parameters=1,
    cache_bytes=1,
)


@dataclass
class Receiver:
    """Collects one request's events.

    `after` is called on the engine's thread behind the first one, or behind the n-th if so many are
    asked for: before the engine's next round.
    """

    after: Callable[[], object] = lambda: None
    events: int = 1
    output: bytes = b""
    last: Finished | Failed | None = None
    done: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        assert self.last is None, "an event after the last"
        if not isinstance(event, Failed):
            self.output += event.output
        if not isinstance(event, Progress):
            self.last = event
            self.done.set()
        self.events -= 1
        if not self.events:
            self.after()
            self.begun.set()

    def finished(self) -> Finished:
        wait_until_set(self.done)
        assert isinstance(self.last, Finished)
        return self.last

    def failed(self) -> str:
        wait_until_set(self.done)
        assert isinstance(self.last, Failed)
        return self.last.message


@contextmanager
def running(decoder: Decoder[Any]) -> Iterator[Engine]:
    engine = Engine(decoder, INFO)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def fake_decoder(slots: int = 4, context: int = 160, ahead: int = 0) -> Decoder[HashModel]:
    if ahead:
        decoder = fake_graph_decoder(sometimes_right, slots, context)
        run_ahead(decoder, ahead)
        return decoder
    model = HashModel(slots, context)
    drafter = FakeDrafter(model, sometimes_right)
    return Decoder(model, drafter, slots=slots, context=context, device=CPU)


AHEAD = pytest.mark.parametrize("ahead", [0, 1, 5])
"""Rounds of a call that is begun before the one before it is read, 0: none is."""


def mixed(index: int) -> Submission:
    return submission(
        f"r{index}",
        prompt=bytes([97 + index]) * (1 + index * 11 % 60),
        max_tokens=1 + index * 13 % 40,
        params=SamplingParams(temperature=[0.0, 0.7, 1.0][index % 3], top_k=index % 4 * 10),
        seed=index,
        draft_length=[0, 5, 2, 16][index % 4],
    )


@AHEAD
def test_sixteen_at_once_each_get_what_each_gets_alone(ahead: int) -> None:
    alone = {}
    for index in range(16):
        job = mixed(index)
        (out,) = generate(
            tiny_decoder(torch.float64, slots=1),
            [Job(job.prompt, job.max_tokens, job.params, job.seed, 0, job.eos)],
        )
        alone[job.request_id] = out.output
    receivers = {f"r{index}": Receiver() for index in range(16)}
    decoder: Decoder[Any] = tiny_decoder(torch.float64, slots=4)
    if ahead:
        model = tiny_model()
        decoder = torch_graph_decoder(model, agreeing_prophet(model), slots=4)
        run_ahead(decoder, ahead)
    with running(decoder) as engine:
        for index in range(16):
            engine.submit(mixed(index), receivers[f"r{index}"])
        for name, receiver in receivers.items():
            finished = receiver.finished()
            assert receiver.output == alone[name]
            assert finished.completion_tokens == len(receiver.output)
        assert engine.status().idle


@AHEAD
def test_a_cancelled_request_ends_at_once_and_frees_its_slot(ahead: int) -> None:
    decoder = fake_decoder(slots=1, ahead=ahead)
    gate = Gate(decoder)
    with running(decoder) as engine:
        first, queued, last = Receiver(gate.shut), Receiver(), Receiver()
        engine.submit(submission("first", max_tokens=150, eos=None), first)
        engine.submit(submission("queued", max_tokens=150), queued)
        wait_until_set(first.begun)
        engine.cancel("queued")
        engine.cancel("first")
        engine.cancel("never seen")
        gate.open()
        for receiver in (first, queued):
            reason = receiver.finished().reason
            assert reason is FinishReason.CANCELLED
        engine.submit(submission("last"), last)
        assert last.finished().reason is FinishReason.LENGTH


@AHEAD
def test_a_cancelled_row_is_gone_within_a_round(ahead: int) -> None:
    decoder = fake_decoder(slots=1, ahead=ahead)
    gate = Gate(decoder)
    with running(decoder) as engine:
        before: list[int] = []

        def shut() -> None:
            gate.shut()
            before.append(gate.rounds)

        receiver = Receiver(shut)
        engine.submit(submission("a", max_tokens=150, draft_length=0, eos=None), receiver)
        wait_until_set(receiver.begun)
        engine.cancel("a")
        gate.open()
        assert receiver.finished().reason is FinishReason.CANCELLED
        eventually(lambda: engine.status().idle)
        # the one before which it was cancelled, at most
        assert gate.rounds <= before[0] + 1


@AHEAD
@pytest.mark.parametrize("where", ["open", "begin"])
def test_a_device_without_memory_fails_what_it_touches_and_nothing_else(
    where: str, ahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = fake_decoder(slots=2, ahead=ahead)
    whole = getattr(decoder, where)
    enough = threading.Event()

    def short(first: Any, *rest: Any) -> Any:
        if not enough.is_set() and (where == "begin" or rest[0].prompt == b"broken"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(first, *rest)

    setattr(decoder, where, short)
    with running(decoder) as engine:
        broken, bystander, later = Receiver(), Receiver(), Receiver()
        if where == "open":
            engine.submit(submission("bystander", max_tokens=100, eos=None), bystander)
        engine.submit(submission("broken", prompt=b"broken"), broken)
        assert broken.failed() == "the device ran out of memory"
        enough.set()
        engine.submit(submission("later", prompt=b"broken"), later)
        assert later.finished().completion_tokens == 8
        if where == "open":
            assert bystander.finished().completion_tokens == 100
        assert engine.status().failures == 0
    assert "CUDA out of memory" in caplog.text


@AHEAD
def test_rounds_that_keep_failing_are_counted(ahead: int) -> None:
    decoder = fake_decoder(ahead=ahead)

    def failing(*arguments: object) -> object:
        raise RuntimeError("an illegal memory access")

    decoder.begin = failing  # type: ignore[method-assign, assignment]
    with running(decoder) as engine:
        for index in range(6):
            receiver = Receiver()
            engine.submit(submission(f"r{index}"), receiver)
            receiver.failed()
        assert engine.status().failures == 6


def test_a_failing_round_fails_its_rows_and_the_engine_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decoder = fake_decoder()
    whole = decoder.model.forward

    def failing(*arguments: object) -> object:
        raise RuntimeError("out of memory")

    with running(decoder) as engine:
        decoder.model.forward = failing  # type: ignore[method-assign, assignment]
        broken = Receiver()
        engine.submit(submission("broken"), broken)
        assert "a round failed" in broken.failed()
        decoder.model.forward = whole  # type: ignore[method-assign]
        sound = Receiver()
        engine.submit(submission("sound"), sound)
        assert sound.finished().reason is FinishReason.LENGTH
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("ahead", [1, 5])
def test_rows_that_leave_and_join_while_a_round_is_under_way(ahead: int) -> None:
    """Cancelled at any time, their slots taken over at once: the others' bytes are their own."""
    alone = {}
    for index in range(24):
        job = replace(mixed(index), request_id=f"r{index}")
        (out,) = generate(
            fake_decoder(slots=1),
            [Job(job.prompt, job.max_tokens, job.params, job.seed, 0, job.eos)],
        )
        alone[job.request_id] = out.output
    receivers = {name: Receiver() for name in alone}
    decoder = fake_decoder(slots=3, ahead=ahead)
    gate = Gate(decoder)
    cut_short = 0
    with running(decoder) as engine:
        for index, receiver in enumerate(receivers.values()):
            if index % 3 == 0:
                receiver.after = gate.shut
            engine.submit(mixed(index), receiver)
            if index % 3 == 1:
                wait_until_set(receivers[f"r{index - 1}"].begun)
                engine.cancel(f"r{index - 1}")
                gate.open()
        for name, receiver in receivers.items():
            finished = receiver.finished()
            assert alone[name].startswith(receiver.output)
            if finished.reason is not FinishReason.CANCELLED:
                assert receiver.output == alone[name]
            cut_short += len(receiver.output) < len(alone[name])
        eventually(lambda: engine.status().idle)
    assert cut_short >= 3


@pytest.mark.parametrize("ahead", [1, 5])
def test_a_round_that_fails_when_it_is_read_fails_the_rows_that_were_in_it(ahead: int) -> None:
    decoder = fake_decoder(slots=2, ahead=ahead)
    whole, fails = decoder.begin, threading.Event()

    def begin(drafts: Any, chunks: Any = None, *more: Any) -> Any:
        begun = whole(drafts, chunks, *more)
        if not fails.is_set():
            return begun

        def broken() -> Any:
            fails.clear()
            raise RuntimeError("an illegal memory access")

        return replace(begun, read=broken)

    decoder.begin = begin  # type: ignore[method-assign]
    with running(decoder) as engine:
        first, second = Receiver(fails.set), Receiver()
        engine.submit(submission("first", max_tokens=150, eos=None), first)
        assert "a round failed" in first.failed()
        engine.submit(submission("second"), second)
        assert second.finished().completion_tokens == 8
        assert engine.status().failures == 0


def test_a_request_that_cannot_fit_fails_alone() -> None:
    with running(fake_decoder()) as engine:
        wide, sound = Receiver(), Receiver()
        engine.submit(submission("wide", max_tokens=1000), wide)
        engine.submit(submission("sound"), sound)
        assert "context of 160" in wide.failed()
        assert sound.finished().completion_tokens == 8


def test_an_id_in_flight_cannot_be_used_again() -> None:
    decoder = fake_decoder()
    gate = Gate(decoder)
    gate.shut()
    with running(decoder) as engine:
        first, second = Receiver(), Receiver()
        engine.submit(submission("same", max_tokens=100), first)
        engine.submit(submission("same"), second)
        gate.open()
        assert "already in flight" in second.failed()
        assert first.finished().completion_tokens == 100


def test_a_receiver_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("the receiver is gone")

    with running(fake_decoder()) as engine:
        sound = Receiver()
        engine.submit(submission("gone"), broken)
        engine.submit(submission("sound"), sound)
        assert sound.finished().completion_tokens == 8
    assert "the receiver is gone" in caplog.text


def test_a_hanging_round_shows_in_the_status() -> None:
    decoder = fake_decoder()
    gate = Gate(decoder)
    gate.shut()
    with running(decoder) as engine:
        receiver = Receiver()
        engine.submit(submission("stuck", max_tokens=1), receiver)
        eventually(lambda: engine.status().running == 1)
        before = engine.status()
        eventually(
            lambda: engine.status().seconds_since_progress > before.seconds_since_progress + 0.05
        )
        assert not engine.status().idle
        gate.open()
        receiver.finished()
        assert engine.status().alive


def test_requests_end_at_their_deadlines_waiting_or_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = fake_decoder(slots=1)
    gate = Gate(decoder)
    gate.shut()
    set_times(monkeypatch, decoder, lambda drafts: 1.0)
    with running(decoder) as engine:
        first, queued, last = Receiver(), Receiver(), Receiver()
        engine.submit(submission("first", max_tokens=150, draft_length=0, timeout_s=9.5), first)
        engine.submit(submission("queued", timeout_s=2.5), queued)
        engine.submit(submission("last"), last)
        gate.open()
        assert (queued.finished().reason, queued.output) == (FinishReason.TIMEOUT, b"")
        assert first.finished().reason is FinishReason.TIMEOUT
        assert len(first.output) == first.finished().completion_tokens == 10
        assert last.finished().reason is FinishReason.LENGTH


def test_a_round_that_hangs_does_not_keep_the_engine_from_stopping(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.engine.LONGEST_STOP_S", 0.01)
    decoder = fake_decoder()
    release, hangs = threading.Event(), threading.Event()

    def hanging(*arguments: object) -> object:
        hangs.set()
        wait_until_set(release)
        raise RuntimeError("released")

    decoder.model.forward = hanging  # type: ignore[method-assign, assignment]
    receiver = Receiver()
    with running(decoder) as engine:
        engine.submit(submission("stuck"), receiver)
        wait_until_set(hangs)
    assert "has not ended" in caplog.text
    release.set()
    receiver.failed()


@AHEAD
def test_stopping_ends_what_is_in_flight_with_an_error(ahead: int) -> None:
    decoder = fake_decoder(slots=1, ahead=ahead)
    gate = Gate(decoder)
    first, *others = receivers = [Receiver(gate.shut), Receiver(), Receiver()]
    with running(decoder) as engine, ThreadPoolExecutor(1) as stops:
        engine.submit(submission("r0", max_tokens=150, eos=None), first)
        wait_until_set(first.begun)
        for index, receiver in enumerate(others, 1):
            engine.submit(submission(f"r{index}", max_tokens=150), receiver)
        stopped = stops.submit(engine.stop)
        # one that runs, two behind it, and the word to stop behind them
        eventually(lambda: engine.status().waiting == 3)
        gate.open()
        stopped.result()
    assert 0 < len(first.output) < 150
    for receiver in receivers:
        assert "shutting down" in receiver.failed()
    assert not engine.status().alive


def test_an_engine_that_dies_fails_what_is_in_flight_and_what_comes_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("a scheduler's mistake")

    monkeypatch.setattr("server.scheduler.Scheduler.apply", broken)
    with running(fake_decoder(slots=1)) as engine:
        first, queued, late = Receiver(), Receiver(), Receiver()
        engine.submit(submission("first"), first)
        engine.submit(submission("queued"), queued)
        assert "has died" in first.failed()
        assert "has died" in queued.failed()
        eventually(lambda: not engine.status().alive)
        engine.submit(submission("late"), late)
        assert "has died" in late.failed()
    assert "a scheduler's mistake" in caplog.text


def test_a_broken_device_is_the_engine_s_end(caplog: pytest.LogCaptureFixture) -> None:
    decoder = fake_decoder()

    def failing(*arguments: object) -> object:
        raise Broken("a round could not be captured")

    decoder.begin = failing  # type: ignore[method-assign, assignment]
    with running(decoder) as engine:
        receiver = Receiver()
        engine.submit(submission("r"), receiver)
        assert "has died" in receiver.failed()
        eventually(lambda: not engine.status().alive)
    assert "could not be captured" in caplog.text


@AHEAD
def test_ignoring_the_end_goes_on_behind_it(ahead: int) -> None:
    decoder = fake_decoder(ahead=ahead)
    with running(decoder) as engine:
        ending, going_on = Receiver(), Receiver()
        job = submission("a", max_tokens=140, params=SamplingParams(logit_bias=((0, 5.0),)))
        engine.submit(job, ending)
        engine.submit(replace(job, request_id="b", eos=None), going_on)
        assert ending.finished().reason is FinishReason.STOP
        assert going_on.finished().reason is FinishReason.LENGTH
        assert going_on.output.startswith(ending.output + b"\x00")


def test_choices_scores_and_stops_with_rounds_under_way() -> None:
    """Several outputs of one prompt, a prompt that is only scored, and a stop: as without."""
    asked = [
        submission(f"c{n}", prompt=b"p" * 70, max_tokens=30, seed=n, draft_length=3, eos=None)
        for n in range(5)
    ]
    asked.append(submission("scored", prompt=b"p" * 70, max_tokens=0, echo=True, logprobs=2))
    asked.append(replace(asked[1], request_id="one byte", prompt=b"p", max_tokens=1))
    outputs: list[list[bytes]] = []
    for ahead in (0, 1, 5):
        with running(fake_decoder(slots=3, ahead=ahead)) as engine:
            if ahead == 1:  # a stop in the middle of what is known of the first
                stop = outputs[0][0][12:15]
                asked.append(replace(asked[0], request_id="stops", stops=(stop,)))
            receivers = [Receiver() for _ in asked]
            for request, receiver in zip(asked, receivers, strict=True):
                engine.submit(request, receiver)
            ends = [receiver.finished() for receiver in receivers]
            outputs.append([receiver.output for receiver in receivers])
            eventually(lambda engine=engine: engine.status().idle)  # type: ignore[misc]
            for request, end in zip(asked, ends, strict=True):
                assert end.speculation.drafted <= 3 * end.speculation.drafts
                assert end.completion_tokens <= request.max_tokens
    assert outputs[0] == outputs[1][:-1]
    assert outputs[1] == outputs[2]
    assert outputs[1][-1] == outputs[0][0][: outputs[0][0].index(stop)]
    assert ends[-1].reason is FinishReason.STOP


@pytest.mark.parametrize("ahead", [1, 5])
def test_a_prompt_that_fails_takes_nobody_with_it_whose_round_is_under_way(ahead: int) -> None:
    decoder = fake_decoder(slots=2, ahead=ahead)
    gate = Gate(decoder)
    whole = decoder.begin

    def begin(drafts: Any, chunks: Any = None, *more: Any) -> Any:
        if chunks and decoder._rows[next(iter(chunks))].job.prompt[:1] == b"!":  # type: ignore[union-attr]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(drafts, chunks, *more)

    decoder.begin = begin  # type: ignore[method-assign]
    with running(decoder) as engine:
        for turn in range(8 // ahead + 1):  # whichever byte of the first the second meets
            first, second = Receiver(gate.shut, events=1 + turn), Receiver()
            engine.submit(
                submission(f"a{turn}", max_tokens=20 + turn, draft_length=0, eos=None), first
            )
            wait_until_set(first.begun)
            engine.submit(submission(f"b{turn}", prompt=b"!" * 30), second)
            gate.open()
            assert second.failed() == "the device ran out of memory"
            wait_until_set(first.done)
            if isinstance(first.last, Finished):
                assert len(first.output) == 20 + turn
        eventually(lambda: engine.status().idle)


def a_fiftieth_more_a_draft(drafts: int) -> float:
    """Seconds of a round."""
    return 1e-3 * (1 + drafts / 50)


@AHEAD
def test_lengths_are_decided_with_rounds_under_way(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short requests of mode auto one after another: each one's last round is read late."""
    costs = RoundCosts({(b, g): a_fiftieth_more_a_draft(g) for b in (1, 4) for g in (0, 4)})
    decoder = fake_decoder(ahead=ahead)
    set_times(monkeypatch, decoder, a_fiftieth_more_a_draft)
    engine = Engine(decoder, INFO, costs)
    engine.start()
    expected = drafted = 0
    try:
        for index in range(30):
            receiver = Receiver()
            asked = replace(mixed(index % 16), request_id=f"r{index}", mode=Mode.AUTO)
            asked = replace(asked, max_tokens=12, draft_length=4, eos=None, stops=())
            engine.submit(asked, receiver)
            end = receiver.finished()
            assert end.completion_tokens == 12
            assert end.speculation.drafted <= 4 * end.speculation.drafts
            drafted += end.speculation.drafted
            expected += end.speculation.rounds
        eventually(lambda: engine.status().idle)
        figures = engine.figures()
    finally:
        engine.stop()
    assert drafted > 0
    # what is begun before the end is known counts for nobody
    assert sum(figures.draft_lengths) == expected
    (latency,) = (tally for tally in figures.per_byte.values() if tally.total)
    assert sum(latency.counts) == 30 * 12


@pytest.mark.parametrize("what", ["submit", "cancel"])
def test_a_long_call_ends_for_whoever_comes_or_goes(what: str) -> None:
    model = tiny_model(context=8000)
    decoder = build_decoder(model, None, slots=2, device=CPU, dtype=torch.float32, kernels="native")
    run_round, calls = decoder.run_round, []
    base = submission(
        "first", mode=Mode.BASE, draft_length=0, max_tokens=7000, interval_s=math.inf, eos=None
    )

    def interrupted(*arguments: Any) -> Any:
        repeats = arguments[-1].repeats
        if len(calls) == 1:
            if what == "submit":
                engine.submit(replace(base, request_id="second"), Receiver())
            else:
                engine.cancel("first")
        outcome = run_round(*arguments)
        calls.append((repeats, len(outcome.elapsed)))
        return outcome

    decoder.run_round = interrupted
    first = Receiver()
    with running(decoder) as engine:
        engine.submit(base, first)
        eventually(lambda: len(calls) > 1)
    # the first may be cut short by the message that it came with
    assert calls[1] == (MOST_ROUNDS, 1)
    assert first.done.is_set()
    if what == "cancel":
        assert first.finished().reason is FinishReason.CANCELLED
        assert len(calls) == 2


def test_what_rounds_took_is_told() -> None:
    costs = RoundCosts({(1, 0): 1e-3, (1, 4): 2e-3, (4, 0): 2e-3, (4, 4): 4e-3})
    decoder = fake_decoder()
    gate = Gate(decoder)
    engine = Engine(decoder, INFO, costs)
    engine.start()
    try:
        receiver = Receiver(gate.shut)
        asked = replace(mixed(0), max_tokens=60, mode=Mode.AUTO, draft_length=4, eos=None, stops=())
        engine.submit(asked, receiver)
        wait_until_set(receiver.begun)
        held = engine.figures().places_held
        gate.open()
        end = receiver.finished()
        eventually(lambda: engine.status().idle)
        figures = engine.figures()
    finally:
        engine.stop()
    assert 0 < held <= len(asked.prompt) + 60
    assert figures.places_held == 0
    assert sum(figures.draft_lengths) == end.speculation.rounds
    passes = {phase: sum(tally.counts) for phase, tally in figures.phases.items()}
    assert passes["verify"] == end.speculation.rounds
    assert passes["draft"] == end.speculation.drafts
    assert passes["prefill"] == (len(asked.prompt) > 1)
    assert passes["host"] == passes["accept"] == passes["verify"] + passes["prefill"]
    assert 0 < figures.phases["verify"].total < figures.decode_s
    assert figures.base_s > 0
    assert figures.gpu is None
    assert figures.pid == os.getpid()


def loops(index: int, mode: Mode, **fields: object) -> Submission:
    """What repeats itself: three letters, hot and cold."""
    return submission(
        f"{mode}{index}",
        prompt=b"aabbcc" * (2 + index),
        max_tokens=120,
        params=SamplingParams(
            temperature=0.3 * (index % 4), logit_bias=((97, 30.0), (98, 29.0), (99, 28.0))
        ),
        seed=index,
        mode=mode,
        **fields,
    )


@pytest.mark.parametrize("prophet", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_texts_that_repeat_themselves_are_looked_up(
    prophet: bool, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In calls of several rounds, with the bytes of base; alone, and beside other rows."""
    model = tiny_model(context=192)
    decoder = build_decoder(
        model,
        agreeing_prophet(model) if prophet else None,
        slots=4,
        device=CPU,
        dtype=torch.float32,
        kernels="native",
    )
    costs = RoundCosts(
        {(b, g): a_fiftieth_more_a_draft(g) for b in (1, 4) for g in ((0, 4) if prophet else (0,))},
        {(b, g): a_fiftieth_more_a_draft(g) for b in (1, 4) for g in (1, 4, 16)},
    )
    set_times(monkeypatch, decoder, a_fiftieth_more_a_draft)
    engine = Engine(decoder, replace(INFO, longest_draft=16 * prophet, longest_lookup=16), costs)
    engine.start()
    outputs: dict[tuple[int, Mode], bytes] = {}
    ends: list[Finished] = []
    try:
        for mode in (Mode.BASE, Mode.AUTO):
            receivers = {}
            for index in range(8):
                asked = loops(
                    index,
                    mode,
                    draft_length=4 * (prophet and mode is Mode.AUTO),
                    lookup_length=16 * (mode is Mode.AUTO),
                    stops=(b"cab",) if index % 3 == 2 else (),
                )
                receivers[index] = Receiver()
                engine.submit(asked, receivers[index])
                if not together:
                    receivers[index].finished()
            for index, receiver in receivers.items():
                end = receiver.finished()
                assert end.completion_tokens == len(receiver.output)
                outputs[index, mode] = receiver.output
                ends += [end] * (mode is Mode.AUTO)
        eventually(lambda: engine.status().idle)
        figures = engine.figures()
    finally:
        engine.stop()
    for index in range(8):
        assert outputs[index, Mode.AUTO] == outputs[index, Mode.BASE]
    figured = [end.speculation for end in ends]
    assert sum(s.lookup_accepted for s in figured) > 40
    for told in figured:
        assert told.lookup_accepted <= told.accepted <= told.drafted
        assert told.lookup_drafted <= told.drafted
        assert sum(told.accepted_per_position) == told.accepted
    assert sum(figures.draft_lengths) >= sum(s.rounds for s in figured)
    assert engine.status().rounds > 0
