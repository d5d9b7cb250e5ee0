"""The thread that owns torch: it takes messages, runs rounds, delivers events.

Knows no HTTP and no event loop: `deliver` callbacks are called on its thread and must not block.
Which rows do what is the scheduler's; what a round is, the decoder's.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from server.draft_lengths import DraftLengths
from server.ledger import Figures, Ledger
from server.memory import gpu_memory
from server.messages import (
    SHUTTING_DOWN,
    Deliver,
    EngineInfo,
    EngineStatus,
    Event,
    Failed,
    Progress,
    Submission,
)
from server.round_costs import RoundCosts
from server.scheduler import Deliveries, Plan, Scheduler
from specdec.decoder import Begun, Decoder, Job
from specdec.round import Broken

logger = logging.getLogger(__name__)

LONGEST_STOP_S = 5.0
"""How long `Engine.stop` waits for a round that hangs."""


@dataclass(frozen=True)
class _Begun:
    """What was begun at a time, if anything was to be decoded or consumed."""

    plan: Plan
    call: Begun | None
    began: float


@dataclass(frozen=True)
class _Submit:
    submission: Submission
    deliver: Deliver
    at: float


@dataclass(frozen=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True)
class _Stop:
    pass


class Engine:
    """Continuous batching over a decoder's slots, on a thread of its own.

    With `costs` rows in mode auto draft as much as pays, and every row omits drafts that are too
    unlikely to pay; or less likely than `p_min`, if that is given.
    """

    def __init__(
        self,
        decoder: Decoder[Any],
        info: EngineInfo,
        costs: RoundCosts | None = None,
        p_min: float | None = None,
    ) -> None:
        self.info = info
        self._decoder = decoder
        lengths = DraftLengths(costs, info.longest_draft, decoder.repeats) if costs else None
        self._scheduler = Scheduler(
            decoder.slots, decoder.chunk, lengths, p_min, long_calls=decoder.in_core
        )
        self._ledger = Ledger(costs)
        self._inbox: SimpleQueue[_Submit | _Cancel | _Stop] = SimpleQueue()
        self._deliver: dict[str, Deliver] = {}
        self._open: set[int] = set()
        self._rounds = self._failures = 0
        self._busy_since = 0.0
        """When the last round ended, if nothing was waited for since."""
        self._begun: _Begun | None = None
        """A round that was begun ahead of what the engine knows."""
        self._progress = time.monotonic()
        self.flush: Callable[[bool], None] = lambda now: None
        """Called on the engine's thread when the events of a round have been delivered, and with
        `now` before a round that may take long."""
        self._stopping = False
        self._ended = ""
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, submission: Submission, deliver: Deliver) -> None:
        """Queues a request; thread-safe.  After the engine's end it fails at once."""
        now = time.monotonic()
        with self._ending:
            if not self._ended:
                if self.status().idle:
                    self._progress = now
                self._tell(_Submit(submission, deliver, now))
                return
        deliver(Failed(self._ended))

    def cancel(self, request_id: str) -> None:
        """Ends a request with reason cancelled if it is in flight; thread-safe."""
        self._tell(_Cancel(request_id))

    def stop(self) -> None:
        """Ends everything in flight with an error and the thread with it, unless a round hangs."""
        self._tell(_Stop())
        if self._thread.is_alive():
            self._thread.join(LONGEST_STOP_S)
            if self._thread.is_alive():
                logger.error("a round has not ended for %.0f s; it is left alone", LONGEST_STOP_S)

    def status(self) -> EngineStatus:
        running, waiting = self._scheduler.running, self._scheduler.waiting
        waiting += self._inbox.qsize()
        return EngineStatus(
            running=running,
            waiting=waiting,
            rounds=self._rounds,
            idle=not (running or waiting),
            seconds_since_progress=time.monotonic() - self._progress,
            failures=self._failures,
            alive=self._thread.is_alive(),
        )

    def figures(self) -> Figures:
        """What rounds took and gave; always from the same thread."""
        decoder = self._decoder
        # slots of rows that have ended are closed with the next round
        held = decoder.places_held if self._scheduler.running else 0
        gpu = gpu_memory(decoder.device)
        return self._ledger.figures(self._scheduler.per_byte, held, gpu, os.getpid())

    def _run(self) -> None:
        reason = "the engine has died"
        try:
            while not self._stopping:
                self._receive()
                # the thread never sleeps while a request is in flight, so it misses no deadline
                self._send(self._scheduler.expire(time.monotonic()))
                plan = self._scheduler.plan(time.monotonic())
                if plan.chunks and not self._decoder.ahead:
                    # which takes long: nothing waits for it
                    self._send(self._take_begun())
                    self.flush(True)
                self._send(self._round(plan))
                self._progress = time.monotonic()
            reason = SHUTTING_DOWN
        except Exception:
            logger.exception(reason)
        finally:
            with self._ending:
                self._ended = reason
            while not self._inbox.empty():
                self._handle(self._inbox.get())
            self._send(self._scheduler.fail_all(reason))

    def _tell(self, message: _Submit | _Cancel | _Stop) -> None:
        self._inbox.put(message)
        self._decoder.interrupt.set()

    def _receive(self) -> None:
        """Takes what has arrived; waits for a message while there is no row to decode."""
        idle = not (self._scheduler.running or self._scheduler.waiting or self._begun)
        if idle:
            self._busy_since = 0.0
        # what is told from here on ends the next call early, at worst for nothing
        self._decoder.interrupt.clear()
        try:
            message = self._inbox.get(block=idle)
            while True:
                self._handle(message)
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _handle(self, message: _Submit | _Cancel | _Stop) -> None:
        if isinstance(message, _Submit):
            request_id = message.submission.request_id
            if request_id in self._deliver:
                message.deliver(Failed(f"request_id {request_id} is already in flight"))
                return
            self._deliver[request_id] = message.deliver
            self._scheduler.submit(message.submission, message.at)
        elif isinstance(message, _Cancel):
            self._send(self._scheduler.cancel(message.request_id, time.monotonic()))
        else:
            self._stopping = True

    def _round(self, plan: Plan) -> Deliveries:
        """Begins a round and takes what the one before it gave; where rounds are not begun ahead,
        what this one gives."""
        deliveries: Deliveries = []
        following = None if plan.empty else self._begin(plan, deliveries)
        deliveries += self._take_begun()
        self._begun = following
        if not self._decoder.ahead:
            deliveries += self._take_begun()
        return deliveries

    def _take_begun(self) -> Deliveries:
        begun, self._begun = self._begun, None
        return self._take(begun) if begun else []

    def _begin(self, plan: Plan, deliveries: Deliveries) -> _Begun | None:
        """An exception in a round fails the rows that it touched, and those alone."""
        for slot in plan.close:
            self._free(slot)
        refused = set()
        for slot, submission in plan.open:
            try:
                self._decoder.open(slot, _job(submission))
                self._open.add(slot)
            except ValueError as error:
                refused.add(slot)
                deliveries += self._scheduler.fail([slot], str(error))
            except Exception as error:
                refused.add(slot)
                self._decoder.close(slot)
                deliveries += self._scheduler.fail([slot], self._excuse(error))
        if refused:
            plan = plan.without(refused)
        call: Begun | None = None
        began = time.monotonic()
        try:
            for slot, source in plan.forks:
                self._decoder.fork(source, slot)
            if plan.drafts or plan.chunks:
                call = self._decoder.begin(
                    plan.drafts, plan.chunks, plan.lookups, plan.rounds, plan.span_s, plan.p_min
                )
        except Exception as error:
            forked = (slot for slot, _ in plan.forks)
            message = self._excuse(error)
            deliveries += self._scheduler.fail([*forked, *plan.drafts, *plan.chunks], message)
            return None
        return _Begun(plan, call, began)

    def _take(self, begun: _Begun) -> Deliveries:
        """Waits for what a round gave, and has it distributed."""
        plan, call, results = begun.plan, begun.call, {}
        try:
            if call is not None:
                results = call.read()
                self._rounds += call.rounds
                self._failures = 0
        except Exception as error:
            return self._scheduler.fail_round(plan, self._excuse(error))
        now = time.monotonic()
        # what the host does between rounds is a part of what they cost
        whole = now - self._busy_since if self._busy_since else None
        elapsed: tuple[float, ...] = ()
        if call is not None:
            # of a round begun ahead counts what it took alone
            seconds = now - max(begun.began, self._busy_since)
            each = (whole or seconds) / call.rounds
            elapsed = self._decoder.elapsed or (each,) * call.rounds
            gone = self._scheduler.gone(plan) if self._decoder.ahead else ()
            spent, drafting = self._decoder.seconds, self._decoder.drafting
            consumes = bool(plan.chunks)
            self._ledger.enter(
                results, plan.chosen, consumes, seconds, spent, gone, elapsed, drafting
            )
        self._busy_since = now
        return self._scheduler.apply(plan, results, now, whole, elapsed)

    def _excuse(self, error: Exception) -> str:
        """What requests are told of a failure that is not theirs; the log has the rest."""
        if isinstance(error, Broken):  # the engine's end
            raise error
        self._failures += 1
        logger.error("a round failed", exc_info=error)
        if not isinstance(error, torch.OutOfMemoryError):
            return "a round failed; the server's log has the reason"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what is held back in pieces may be what the next round needs
        return "the device ran out of memory"

    def _free(self, slot: int) -> None:
        if slot in self._open:
            self._decoder.close(slot)
            self._open.discard(slot)

    def _send(self, deliveries: Deliveries) -> None:
        for request_id, event in deliveries:
            pass_on(self._deliver, request_id, event)
        self.flush(False)


def pass_on(receivers: dict[str, Deliver], request_id: str, event: Event) -> None:
    """Hands a request's event to its receiver, which leaves `receivers` with the last one."""
    deliver = receivers[request_id]
    if not isinstance(event, Progress):
        del receivers[request_id]
    try:
        deliver(event)
    except Exception:
        logger.exception("the receiver of %s failed", request_id)


def _job(submission: Submission) -> Job:
    return Job(
        prompt=submission.prompt,
        max_tokens=submission.max_tokens,
        params=submission.params,
        seed=submission.seed,
        draft_length=submission.draft_length,
        eos=submission.eos,
        logprobs=submission.logprobs,
        score_prompt=submission.scores_prompt,
    )
