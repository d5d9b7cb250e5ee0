"""What the routes share: the engine once it is loaded, the metrics and the ids in flight.

Decides what a request means for the model that is loaded, and refuses what it makes impossible.
Lives on the event loop; knows no HTTP beyond the errors that it raises.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Protocol

from server.errors import Duplicate, Impossible, InvalidField, Unavailable
from server.messages import EngineInfo, EngineStatus, Event, Mode, Progress, Submission
from server.metrics import Metrics, RequestMeter
from server.schemas import GenerateRequest
from server.settings import Settings
from server.streaming import Flight

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 256
STALLED_S = 30.0


class EngineLike(Protocol):
    """What the service needs of an engine; all but `info` may be called from any thread."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, submission: Submission, deliver: Callable[[Event], None]) -> None:
        """Queues a request; its events are delivered on the engine's thread."""

    def cancel(self, request_id: str) -> None:
        """Ends a request; nothing happens if it is not in flight."""

    def status(self) -> EngineStatus: ...

    def stop(self) -> None:
        """Ends whatever is in flight and the engine's thread."""


class Service:
    """One engine and who uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._engine: EngineLike | None = None
        self._failed = False
        self._in_flight: set[str] = set()

    async def start(self, load: Callable[[Settings], EngineLike]) -> None:
        """Loads on a thread, so that the server can say meanwhile that it is not ready."""
        try:
            engine = await asyncio.to_thread(load, self.settings)
        except (ValueError, OSError) as error:
            self._failed = True
            logger.error("cannot serve %s: %s", self.settings.checkpoint, error)
        except Exception:
            self._failed = True
            logger.exception("cannot serve %s", self.settings.checkpoint)
        else:
            self.metrics.watch(engine.info, engine.status)
            self._engine = engine

    async def stop(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)

    @property
    def engine(self) -> EngineLike:
        """The engine, if it can take requests."""
        if self._failed:
            raise Unavailable("the model could not be loaded", code="not_loaded")
        if self._engine is None:
            raise Unavailable("the model is still loading", code="loading")
        if not self._engine.status().alive:
            raise Unavailable("the engine has stopped", code="engine_stopped")
        return self._engine

    def health(self) -> str:
        """One word while there is nothing to worry about: loading takes its time."""
        if self._engine is None and not self._failed:
            return "loading"
        status = self.engine.status()
        if (status.running or status.waiting) and status.seconds_since_progress > STALLED_S:
            stalled = f"no progress for {status.seconds_since_progress:.0f} s"
            raise Unavailable(stalled, code="engine_stalled")
        return "ok"

    def submit(self, submission: Submission) -> Flight:
        """Hands a request to the engine; its id is free again after its last event."""
        engine = self.engine
        request_id = submission.request_id
        if request_id in self._in_flight:
            raise Duplicate("a request of this id is in flight", "request_id")
        meter = RequestMeter(self.metrics, submission)

        def observe(event: Event) -> None:
            if not isinstance(event, Progress):
                self._in_flight.discard(request_id)
            meter.observe(event)

        flight = Flight(lambda: engine.cancel(request_id), observe)
        engine.submit(submission, flight.deliver)
        self._in_flight.add(request_id)
        return flight


def resolve(
    request: GenerateRequest, request_id: str, info: EngineInfo, settings: Settings
) -> Submission:
    """The request with everything decided that it left open, for this model."""
    prompt = request.content
    if not prompt:
        if info.eos is None:
            message = "must not be empty: the model declares no end-of-document byte"
            raise InvalidField(f"{request.prompt_field}: {message}", request.prompt_field)
        prompt = bytes([info.eos])
    mode, draft_length = _decode_path(request, info, settings)
    return Submission(
        request_id=request_id,
        prompt=prompt,
        max_tokens=_max_tokens(request, len(prompt), info.context),
        params=request.sampling,
        seed=secrets.randbelow(2**53) if request.seed is None else request.seed,
        mode=mode,
        draft_length=draft_length,
        eos=None if request.ignore_eos else info.eos,
        stops=request.stops,
    )


def _max_tokens(request: GenerateRequest, prompt_tokens: int, context: int) -> int:
    room = context - prompt_tokens
    code = "context_length_exceeded"
    if room < 1:
        message = f"{prompt_tokens} bytes leave no room in the context of {context}"
        raise Impossible(f"{request.prompt_field}: {message}", request.prompt_field, code)
    if request.max_tokens is None:
        if request.min_tokens > min(DEFAULT_MAX_TOKENS, room):
            message = f"must not be above max_tokens, here {min(DEFAULT_MAX_TOKENS, room)}"
            raise Impossible(f"min_tokens: {message}", "min_tokens")
        return min(DEFAULT_MAX_TOKENS, room)
    if request.max_tokens > room:
        message = f"must be at most {room}, the room after the prompt in the context of {context}"
        raise Impossible(f"max_tokens: {message}", "max_tokens", code)
    return request.max_tokens


def _decode_path(
    request: GenerateRequest, info: EngineInfo, settings: Settings
) -> tuple[Mode, int]:
    """The path taken and its draft length; auto drafts wherever there is a prophet."""
    mode = request.mode or Mode(settings.mode)
    if mode is Mode.AUTO:
        mode = Mode.SPECULATIVE if info.longest_draft else Mode.BASE
    if mode is Mode.SPECULATIVE and not info.longest_draft:
        raise Impossible("mode: this model has no prophet to draft with", "mode", "no_prophet")
    if request.draft_length is None:
        drafted = min(settings.draft_length, info.longest_draft)
        return mode, drafted if mode is Mode.SPECULATIVE else 0
    if mode is Mode.BASE:
        message = "draft_length: nothing is drafted, for want of a prophet or by the default mode"
        raise Impossible(message, "draft_length")
    if request.draft_length > info.longest_draft:
        message = f"draft_length: must be at most {info.longest_draft} with this model"
        raise Impossible(message, "draft_length")
    return mode, request.draft_length
