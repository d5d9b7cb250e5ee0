"""The engine in a process of its own, behind the interface of `server.engine.Engine`.

HTTP and decoding then do not take turns at one interpreter.  Submissions and cancellations go over
a pipe; what a round gave comes back in one piece, and so does what some short rounds gave
(`HOLD_S`).  How the engine fares lies in shared memory, so that a glance costs no message and a
round that hangs can be seen; what rounds took and gave comes every second.
"""

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from queue import SimpleQueue
from typing import Any

from server.engine import LONGEST_STOP_S, Engine, pass_on
from server.ledger import Figures
from server.logs import configure
from server.memory import spare_collector
from server.messages import (
    SHUTTING_DOWN,
    Deliver,
    EngineInfo,
    EngineStatus,
    Event,
    Failed,
    Progress,
    Submission,
    joined,
)
from server.settings import Settings

logger = logging.getLogger(__name__)

Load = Callable[[Settings], Engine]

GLANCE_S = 0.05
"""Seconds between two looks of the child at its engine."""

HOLD_S = 0.01
"""A message wakes three threads that take the processors from the next round: events of rounds
shorter than this wait for one another."""

EACH_S = 0.0005
"""For each request under way events wait so long: an event costs the event loop a tenth of a
millisecond, and many streams should not take it all."""

LONGEST_HOLD_S = 0.1
"""The longest wait, also of output that nobody wants before the end: its bytes are counted as they
come."""

FIGURES_S = 1.0
"""Seconds between two messages of what rounds took and gave."""

_RUNNING, _ROUNDS, _PROGRESS, _FAILURES = range(4)


@dataclass(frozen=True)
class _NotLoaded:
    """`expected`: what is to blame is the checkpoint or a setting, and the message says it all."""

    message: str
    expected: bool


class EngineProcess:
    """Starts a process, loads there, and speaks for the engine in it.

    ValueError where the engine cannot be loaded, RuntimeError where loading fails otherwise.
    """

    def __init__(self, settings: Settings, load: Load) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._glance = RawArray("d", 4)
        self._outgoing: SimpleQueue[Submission | str | None] = SimpleQueue()
        self._deliver: dict[str, Deliver] = {}
        self._changing = threading.Lock()
        self._arrived = time.monotonic()
        self._ended = ""
        self._figures = Figures()
        self._process = context.Process(
            target=_run, args=(theirs, self._glance, settings, load), name="engine", daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            first: EngineInfo | _NotLoaded = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the engine's process ended while it was loading") from None
        if isinstance(first, _NotLoaded):
            self._process.join()
            raise (ValueError if first.expected else RuntimeError)(first.message)
        self.info = first
        self._reader = threading.Thread(target=self._read, name="engine events", daemon=True)
        self._reader.start()
        self._writer = threading.Thread(target=self._write, name="engine requests", daemon=True)
        self._writer.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def submit(self, submission: Submission, deliver: Deliver) -> None:
        """Queues a request; thread-safe.  After the engine's end it fails at once."""
        with self._changing:
            taken = submission.request_id in self._deliver
            if not taken and not self._ended:
                if not self._deliver:
                    self._arrived = time.monotonic()
                self._deliver[submission.request_id] = deliver
        if taken:
            deliver(Failed(f"request_id {submission.request_id} is already in flight"))
        elif self._ended:
            deliver(Failed(self._ended))
        else:
            self._outgoing.put(submission)

    def cancel(self, request_id: str) -> None:
        """Ends a request with reason cancelled if it is in flight; thread-safe."""
        self._outgoing.put(request_id)

    def stop(self) -> None:
        """Ends everything in flight with an error and the process with it, even if it hangs."""
        self._outgoing.put(None)
        self._process.join(LONGEST_STOP_S)
        if self._process.is_alive():
            logger.error("a round has not ended for %.0f s; its process is killed", LONGEST_STOP_S)
            self._process.kill()
            self._process.join()
        self._reader.join()
        self._writer.join()

    def status(self) -> EngineStatus:
        in_flight = len(self._deliver)
        running = min(int(self._glance[_RUNNING]), in_flight)
        progress = max(self._glance[_PROGRESS], self._arrived)
        return EngineStatus(
            running=running,
            waiting=in_flight - running,
            rounds=int(self._glance[_ROUNDS]),
            idle=not in_flight,
            seconds_since_progress=time.monotonic() - progress,
            alive=self._process.is_alive() and not self._ended,
            failures=int(self._glance[_FAILURES]),
        )

    def figures(self) -> Figures:
        """What rounds took and gave, as of a second ago at most."""
        return self._figures

    def _write(self) -> None:
        """On a thread of its own: the pipe of a process that does not read fills up, and blocks."""
        with suppress(OSError):  # a process that is gone is the reader's to tell
            message: Submission | str | None = ""
            while message is not None:
                message = self._outgoing.get()
                self._pipe.send(message)

    def _read(self) -> None:
        stopped = False
        with suppress(EOFError, OSError):
            while True:
                message: list[tuple[str, Event]] | Figures | None = self._pipe.recv()
                if message is None:
                    stopped = True
                    continue
                if isinstance(message, Figures):
                    self._figures = message
                    continue
                for request_id, event in message:
                    pass_on(self._deliver, request_id, event)
        reason = SHUTTING_DOWN if stopped else "the engine has died"
        if not stopped:
            logger.error("the engine's process has ended, exit code %s", self._process.exitcode)
        with self._changing:
            self._ended = reason
        for request_id in list(self._deliver):
            pass_on(self._deliver, request_id, Failed(reason))


def _run(pipe: Connection, glance: Any, settings: Settings, load: Load) -> None:
    """The child: loads, then serves the pipe until it is told to stop or the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent says when to end
    configure(settings)
    loaded = _loaded(settings, load)
    if isinstance(loaded, _NotLoaded):
        pipe.send(loaded)
        return
    spare_collector()
    engine, outbox = loaded, _Outbox(pipe)
    engine.flush = outbox.flush
    pipe.send(engine.info)
    told = 0.0
    with suppress(EOFError, OSError):
        while True:
            status = engine.status()
            glance[_RUNNING], glance[_ROUNDS] = status.running, status.rounds
            glance[_FAILURES] = status.failures
            glance[_PROGRESS] = time.monotonic() - status.seconds_since_progress
            if not status.alive:
                break
            if time.monotonic() - told >= FIGURES_S:
                outbox.tell(engine.figures())
                told = time.monotonic()
            if not pipe.poll(GLANCE_S):
                continue
            message: Submission | str | None = pipe.recv()
            if message is None:
                break
            if isinstance(message, str):
                engine.cancel(message)
            else:
                engine.submit(message, outbox.of(message))
    alive = engine.status().alive
    engine.stop()
    outbox.flush(True)
    if alive:
        with suppress(OSError):
            pipe.send(None)


def _loaded(settings: Settings, load: Load) -> Engine | _NotLoaded:
    """On a thread that ends: see `Service.start` for why."""
    result: list[Engine | _NotLoaded] = []

    def run() -> None:
        try:
            result.append(load(settings))
        except (ValueError, OSError) as error:
            result.append(_NotLoaded(str(error), expected=True))
        except Exception as error:
            logger.exception("the engine could not be loaded")
            result.append(_NotLoaded(f"{type(error).__name__}: {error}", expected=False))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


class _Outbox:
    """Events on their way to the parent: those of a round, or of some short ones, in one message.

    A request's first event and its last do not wait, others as long as its client cares, within
    bounds.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._events: list[tuple[str, Event]] = []
        self._begun: set[str] = set()
        self._hold_s = LONGEST_HOLD_S
        """How long the events may wait that do; 0 if one of them must not."""
        self._sent = 0.0
        self._sending = threading.Lock()

    def of(self, submission: Submission) -> Deliver:
        return partial(self._take, submission.request_id, max(HOLD_S, submission.interval_s))

    def _take(self, request_id: str, least_s: float, event: Event) -> None:
        self._events.append((request_id, event))
        hold_s = 0.0
        if not isinstance(event, Progress):
            self._begun.discard(request_id)
        elif request_id not in self._begun:
            self._begun.add(request_id)
        else:
            hold_s = max(least_s, EACH_S * len(self._begun))
        self._hold_s = min(self._hold_s, hold_s)

    def tell(self, figures: Figures) -> None:
        with self._sending, suppress(OSError):
            self._pipe.send(figures)

    def flush(self, now: bool) -> None:
        clock = time.monotonic()
        with self._sending:
            if not self._events or not (now or clock - self._sent >= self._hold_s):
                return
            events, self._events = self._events, []
            self._hold_s, self._sent = LONGEST_HOLD_S, clock
            with suppress(OSError):  # the parent is gone, and soon we are
                self._pipe.send(joined(events))
