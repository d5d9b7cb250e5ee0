"""What the routes share: the engine once it is loaded, the metrics and the requests in flight.

Lives on the event loop; knows no HTTP beyond the errors that it raises.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from server.admission import Admission
from server.engine_like import EngineLike
from server.errors import ApiError, Duplicate, Unavailable
from server.flight import Flight
from server.mailbox import Mailbox
from server.messages import SHUTTING_DOWN, Event, Progress, Submission
from server.metrics import Metrics, RequestMeter
from server.parity import ParityAudit
from server.request_log import RequestLog, log_refusal
from server.settings import Settings

logger = logging.getLogger(__name__)


class Service:
    """One engine and who uses it."""

    MOST_FAILURES = 5
    """Rounds that fail one after another until the server is given up for broken."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.max_waiting)
        self.draining = False
        self.loaded_at = 0
        """Unix time."""
        self._engine: EngineLike | None = None
        self._failed = False
        self._admission = Admission(
            settings.max_waiting, settings.max_waiting_bytes, settings.max_seconds
        )
        self._flights: dict[str, Flight] = {}
        self._mailbox: Mailbox | None = None
        self._parity: ParityAudit | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, load: Callable[[Settings], EngineLike]) -> None:
        """Loads on a thread, so that the server can say meanwhile that it is not ready.

        The thread ends with the loading: OpenMP keeps a team of threads for each that has computed,
        and with a second team on the same cores every round takes twice as long.
        """
        try:
            with ThreadPoolExecutor(1) as loader:
                loop = asyncio.get_running_loop()
                engine = await loop.run_in_executor(loader, load, self.settings)
        except (ValueError, OSError) as error:
            self._failed = True
            logger.error("cannot serve %s: %s", self.settings.checkpoint, error)
        except Exception as error:
            self._failed = True
            if self.draining:
                killed = isinstance(error, RuntimeError)  # as the engine's process then is
                logger.info("told to stop while loading: %s", error, exc_info=not killed)
            else:
                logger.exception("cannot serve %s", self.settings.checkpoint)
        else:
            self.metrics.watch(engine.info, engine.status, engine.figures)
            self.loaded_at = int(time.time())
            self._engine = engine
            self._parity = ParityAudit(
                self.settings.parity_every, engine, self.metrics, self._letters(), self._idle_slot
            )

    @property
    def loading(self) -> bool:
        return self._engine is None and not self._failed

    @property
    def bereft(self) -> bool:
        """Whether there was an engine that has ended."""
        return self._engine is not None and not self._engine.status().alive

    async def stop(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)

    async def drain(self) -> bool:
        """Waits for what is in flight, at most `drain_seconds`; what is left then fails.

        Whether nothing was left.  New requests have been refused since `draining` was set.
        """
        if self._parity is not None:
            self._parity.give_way()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                await self._empty.wait()
                return True
        logger.warning("%d requests have not ended in time", len(self._flights))
        await self.stop()
        # an engine that hangs has not told them
        for flight in list(self._flights.values()):
            flight.fail(SHUTTING_DOWN)
        return False

    @property
    def engine(self) -> EngineLike:
        """The engine, if it is there."""
        if self._failed:
            raise Unavailable("the model could not be loaded", code="not_loaded")
        if self._engine is None:
            raise Unavailable("the model is still loading", code="loading")
        if self.bereft:
            raise Unavailable("the engine has stopped", code="engine_stopped")
        return self._engine

    def open_engine(self) -> EngineLike:
        """The engine, if it takes new requests."""
        if self.draining:
            raise Unavailable(SHUTTING_DOWN, code="draining")
        return self.engine

    def health(self) -> str:
        """One word while there is nothing to worry about: loading and draining take their time."""
        if self.loading:
            return "loading"
        status = self.engine.status()
        stalled_s = status.seconds_since_progress
        if (status.running or status.waiting) and stalled_s > self.settings.stall_seconds:
            raise Unavailable(f"no progress for {stalled_s:.0f} s", code="engine_stalled")
        if status.failures >= self.MOST_FAILURES:
            message = f"the last {status.failures} rounds failed"
            raise Unavailable(message, code="engine_failing")
        return "draining" if self.draining else "ok"

    def check_room(self, *prompt_sizes: int) -> EngineLike:
        """The engine, if requests with such prompts may come in now."""
        engine = self.open_engine()
        self._admission.check(prompt_sizes, engine.info.max_batch, time.monotonic())
        return engine

    def refused(self, error: ApiError, request_id: str | None) -> None:
        """Takes note of a request that is refused."""
        self.metrics.rejected(error.code)
        log_refusal(error, request_id)

    def submit(self, submissions: Sequence[Submission]) -> Flight:
        """Hands a request's choices to the engine, all of them or none.

        The request's id, the first choice's, is free again after the last event.
        """
        engine = self.check_room(*(len(submission.prompt) for submission in submissions))
        request_id = submissions[0].request_id
        if request_id in self._flights:
            raise Duplicate("a request of this id is in flight", "request_id")
        meters = [RequestMeter(self.metrics, submission) for submission in submissions]
        log = RequestLog(submissions, meters, prompts=self.settings.log_prompts)
        parity = self._parity
        assert parity is not None
        followers = [parity.follow(submission) for submission in submissions]

        def observe(choice: int, event: Event) -> None:
            if not isinstance(event, Progress):
                self._admission.leave(submissions[choice].request_id, time.monotonic())
                if flight.landed:
                    self._land(request_id)
            meters[choice].observe(event)
            log.observe(event)
            if (follow := followers[choice]) is not None:
                follow(event)
            if not isinstance(event, Progress):
                parity.proceed()

        flight = Flight(
            len(submissions),
            cancel=lambda choice: engine.cancel(submissions[choice].request_id),
            observe=observe,
            mailbox=self._letters(),
        )
        if len(self._admission) + len(submissions) >= engine.info.max_batch:
            parity.give_way()
        for choice, submission in enumerate(submissions):
            engine.submit(submission, flight.receiver(choice))
            self._admission.enter(submission.request_id, len(submission.prompt), time.monotonic())
        self._flights[request_id] = flight
        self._empty.clear()
        return flight

    def _idle_slot(self) -> bool:
        """Whether there is a slot that no request wants."""
        if self.draining or self._engine is None or self.bereft:
            return False
        return len(self._admission) < self._engine.info.max_batch

    def _letters(self) -> Mailbox:
        if self._mailbox is None:
            self._mailbox = Mailbox(asyncio.get_running_loop())
        return self._mailbox

    def _land(self, request_id: str) -> None:
        del self._flights[request_id]
        if not self._flights:
            self._empty.set()
