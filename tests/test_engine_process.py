"""An engine in a process of its own: the same answers, and what happens when either dies."""

import math
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_engine import finished
from patience import eventually
from test_engine import INFO, Receiver, fake_decoder, mixed
from test_scheduler import submission

from server.engine import Engine
from server.engine_process import EACH_S, HOLD_S, LONGEST_HOLD_S, EngineProcess, _Outbox
from server.messages import Event, FinishReason, Mode, Progress
from server.settings import Settings

SETTINGS = Settings(_cli_parse_args=False, api_keys=("secret",))  # type: ignore[call-arg]


def load(settings: Settings) -> Engine:
    assert settings.all_keys == (b"secret",)
    engine = Engine(fake_decoder(), INFO)
    engine.start()
    return engine


class Pipe:
    def __init__(self) -> None:
        self.sent: list[list[tuple[str, Event]]] = []

    def send(self, message: list[tuple[str, Event]]) -> None:
        self.sent.append(message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number: the time that outboxes see."""
    time_now = [100.0]
    monkeypatch.setattr("server.engine_process.time.monotonic", lambda: time_now[0])
    return time_now


def test_events_of_short_rounds_wait_for_one_another_but_the_first_and_the_last(
    clock: list[float],
) -> None:
    pipe = Pipe()
    outbox = _Outbox(pipe)  # type: ignore[arg-type]
    deliver = outbox.of(submission("a"))

    def round_of(output: bytes, now: bool = False) -> int:
        deliver(Progress(output))
        outbox.flush(now)
        return len(pipe.sent)

    assert round_of(b"1") == 1
    assert round_of(b"2") == 1
    assert round_of(b"3", now=True) == 2
    assert pipe.sent[1] == [("a", Progress(b"23"))]
    assert round_of(b"4") == 2
    clock[0] += 2 * HOLD_S
    assert round_of(b"5") == 3
    assert round_of(b"6") == 3
    end = finished(6)
    deliver(end)
    outbox.flush(False)
    assert pipe.sent[3] == [("a", Progress(b"6")), ("a", end)]
    outbox.flush(True)
    assert len(pipe.sent) == 4
    deliver(Progress(b"again"))
    outbox.flush(False)
    assert len(pipe.sent) == 5


def test_output_waits_as_long_as_its_client_and_no_longer_than_others_allow(
    clock: list[float],
) -> None:
    pipe = Pipe()
    outbox = _Outbox(pipe)  # type: ignore[arg-type]
    whole, slow, live = (
        outbox.of(replace(submission(name), interval_s=interval))
        for name, interval in (("whole", math.inf), ("slow", LONGEST_HOLD_S / 2), ("live", 0.0))
    )
    for deliver in (whole, slow, live):
        deliver(Progress(b"first"))
    outbox.flush(False)
    assert len(pipe.sent) == 1
    for deliver, seconds, sent in (
        (whole, LONGEST_HOLD_S / 2, 1),
        (slow, 0.0, 2),
        (whole, LONGEST_HOLD_S / 2, 2),
        (whole, LONGEST_HOLD_S / 2, 3),
        (slow, HOLD_S, 3),
        (live, 0.0, 4),
    ):
        clock[0] += 1.001 * seconds
        deliver(Progress(b"more"))
        outbox.flush(False)
        assert len(pipe.sent) == sent
    assert pipe.sent[2] == [("whole", Progress(b"moremore"))]
    crowd = [outbox.of(submission(f"{index}")) for index in range(60)]
    for deliver in crowd:
        deliver(Progress(b"first"))
    outbox.flush(False)
    for seconds, sent in ((60 * EACH_S, 5), (4 * EACH_S, 6)):
        clock[0] += seconds
        live(Progress(b"more"))
        outbox.flush(False)
        assert len(pipe.sent) == sent


Gate = multiprocessing.synchronize.Event


def shut_gate() -> Gate:
    """One that another process can stand before; to be opened by `set`."""
    return multiprocessing.get_context("spawn").Event()


class Gated:
    """A model before whose passes there is a gate, which may let one through for each word that
    the engine is told meanwhile."""

    def __init__(self, model: Any, gate: Gate, told: Callable[[], bool]) -> None:
        self.model, self.gate, self.told = model, gate, told

    def forward(self, *arguments: Any) -> Any:
        eventually(lambda: self.gate.is_set() or self.told())
        return self.model.forward(*arguments)


def load_gated(gate: Gate, for_words: bool, settings: Settings) -> Engine:
    decoder = fake_decoder()
    decoder.model = Gated(  # type: ignore[assignment]
        decoder.model, gate, lambda: for_words and decoder.interrupt.is_set
    )
    engine = Engine(decoder, INFO)
    engine.start()
    return engine


def gated(for_words: bool = False) -> tuple[EngineProcess, Gate]:
    gate = shut_gate()
    return EngineProcess(SETTINGS, partial(load_gated, gate, for_words)), gate


def load_nothing(settings: Settings) -> Engine:
    raise ValueError("model.safetensors: is not there")


def load_badly(settings: Settings) -> Engine:
    raise KeyError("surprise")


def load_to_death(settings: Settings) -> Engine:
    os._exit(3)


def state(pid: int) -> str:
    """A letter of /proc: T is stopped, Z has ended, like what is no longer there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def alive(pid: int) -> bool:
    return state(pid) != "Z"


def test_it_answers_as_an_engine_beside_would() -> None:
    engine, gate = gated()
    try:
        assert engine.info == INFO
        receivers = [Receiver() for _ in range(16)]
        for index, receiver in enumerate(receivers):
            engine.submit(mixed(index), receiver)
        assert not engine.status().idle
        gate.set()
        ends = [receiver.finished() for receiver in receivers]
        eventually(lambda: engine.status().idle)
        eventually(lambda: engine.status().rounds > 0)
        beside = load(SETTINGS)
        for index, (receiver, end) in enumerate(zip(receivers, ends, strict=True)):
            other = Receiver()
            beside.submit(mixed(index), other)
            assert other.finished().speculation == end.speculation
            assert other.output == receiver.output
        beside.stop()
    finally:
        engine.stop()
    assert not engine.status().alive
    late = Receiver()
    engine.submit(submission("late"), late)
    assert late.failed() == "the server is shutting down"


def test_what_rounds_took_is_told_from_the_other_process() -> None:
    process = EngineProcess(SETTINGS, load)
    try:
        receiver = Receiver()
        process.submit(mixed(0), receiver)
        end = receiver.finished()
        rounds, size = end.speculation.rounds, end.completion_tokens
        # bytes are booked behind the rounds that they came from
        eventually(lambda: sum(process.figures().per_byte[Mode.SPECULATIVE].counts) == size)
        latency = process.figures().per_byte[Mode.SPECULATIVE]
        assert latency.total == pytest.approx(end.timing.decode_s)
        assert sum(process.figures().phases["verify"].counts) == rounds
        assert process.figures().pid == process.pid
    finally:
        process.stop()


def test_a_request_is_cancelled_and_its_id_can_be_used_again() -> None:
    engine, gate = gated(for_words=True)
    try:
        first, second = Receiver(), Receiver()
        engine.submit(submission("a", prompt=b"long", max_tokens=150, eos=None), first)
        engine.submit(submission("a"), second)
        assert second.failed() == "request_id a is already in flight"
        engine.cancel("a")
        engine.cancel("nobody")
        assert first.finished().reason is FinishReason.CANCELLED
        gate.set()
        third = Receiver()
        engine.submit(submission("a"), third)
        assert third.finished().reason is FinishReason.LENGTH
    finally:
        engine.stop()


def test_what_cannot_be_loaded_is_told() -> None:
    with pytest.raises(ValueError, match=r"model.safetensors: is not there"):
        EngineProcess(SETTINGS, load_nothing)
    with pytest.raises(RuntimeError, match="KeyError: 'surprise'"):
        EngineProcess(SETTINGS, load_badly)
    with pytest.raises(RuntimeError, match="ended while it was loading"):
        EngineProcess(SETTINGS, load_to_death)


def test_a_process_that_is_killed_fails_what_is_in_flight() -> None:
    engine, _ = gated()
    receiver = Receiver()
    engine.submit(submission("a", max_tokens=10), receiver)
    eventually(lambda: engine.status().running == 1)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert receiver.failed() == "the engine has died"
    eventually(lambda: not engine.status().alive)
    late = Receiver()
    engine.submit(submission("b"), late)
    assert late.failed() == "the engine has died"
    engine.cancel("b")
    engine.stop()


def test_a_round_that_hangs_is_seen_and_does_not_outlive_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.engine_process.LONGEST_STOP_S", 0.5)
    engine, _ = gated()
    receiver = Receiver()
    engine.submit(submission("a", max_tokens=10), receiver)
    eventually(lambda: engine.status().seconds_since_progress > 0.5)
    assert engine.status().alive
    engine.stop()
    assert receiver.failed() in ("the engine has died", "the server is shutting down")
    assert engine.pid is not None
    assert not alive(engine.pid)


def test_a_process_that_does_not_read_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine_process.LONGEST_STOP_S", 0.5)
    engine = EngineProcess(SETTINGS, load)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    eventually(lambda: state(engine.pid or 0) == "T")
    receivers = [Receiver() for _ in range(500)]
    for index, receiver in enumerate(receivers):
        # more than a pipe holds; the call comes back all the same
        engine.submit(submission(f"r{index}", prompt=b"a" * 2000), receiver)
    assert engine.status().waiting + engine.status().running == 500
    engine.stop()
    assert {receiver.failed() for receiver in receivers} == {"the engine has died"}


def test_the_process_does_not_outlive_its_parent() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_engine_process as t\n"
        "if __name__ == '__main__':\n"
        "    print(t.EngineProcess(t.SETTINGS, t.load).pid, flush=True); sys.stdin.read()"
    )
    here = Path(__file__).parent
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(here)], cwd=here.parent, **pipes
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    eventually(lambda: not alive(child))
