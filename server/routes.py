"""The endpoints of this server's own: /generate and what operators ask."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.answers import Answer, Answers, Piece, Version, answer_to, scores_of
from server.errors import ApiError
from server.intake import accept
from server.messages import EngineInfo, Finished, Progress, Submission
from server.openapi import documented_body, documented_errors, documented_events
from server.schemas import GenerateRequest
from server.service import Service
from server.streaming import EventStream, OutputEncoder, server_sent_event

router = APIRouter()


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


class _AnswerForm:
    """An event for each piece of output; the last of a choice is its answer, with what was left."""

    def __init__(self, submissions: Sequence[Submission], info: EngineInfo) -> None:
        self._submissions = submissions
        self._info = info
        self._encoders = [OutputEncoder() for _ in submissions]
        self._outputs = [bytearray() for _ in submissions]

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        submission, output = self._submissions[choice], self._outputs[choice]
        output += event.output
        encoded = self._encoders[choice].encode(event.output, final=isinstance(event, Finished))
        if isinstance(event, Finished):
            answer = answer_to(submission, choice, self._info, event, bytes(output))
            yield server_sent_event({**answer, **encoded})
        else:
            # a `Piece`, without the cost of its checks for every row of every round
            piece: dict[str, object] = {"index": choice, **encoded}
            scores = scores_of(submission, event)
            if scores is not None:
                piece["logprobs"] = scores
            yield server_sent_event(piece)

    def error(self, error: ApiError) -> Iterator[bytes]:
        yield server_sent_event(error.envelope)

    def end(self) -> Iterator[bytes]:
        return iter(())


@router.post(
    "/generate",
    response_model=Answer | Answers,
    responses={
        200: documented_events(Piece, Answer),
        **documented_errors(400, 401, 408, 409, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra=documented_body(
        GenerateRequest,
        text={"prompt": "The ", "max_tokens": 64, "temperature": 0},
        bytes={"prompt_bytes": "AAH/", "max_tokens": 16, "seed": 1, "stop_bytes": ["AA=="]},
        stream={"prompt": "def ", "top_p": 0.9, "stop": ["\n\n"], "stream": True},
        several={"prompt": "import ", "n": 4, "seed": 1},
        score={"prompt": "import os", "max_tokens": 0, "echo": True, "logprobs": 3},
    ),
)
async def generate(request: Request, service: ServiceOf) -> Response:
    """Continue a text.

    With `n` above 1, an object of `choices`, an answer each.  With `stream`, an event for each
    piece of output, `index`, `text` and `bytes`; the last of an index has the answer's other
    fields too.
    """
    accepted = await accept(request, service, GenerateRequest)
    asked, flight, info = accepted.asked, accepted.flight, accepted.info
    submissions = accepted.submissions
    if asked.stream:
        form = _AnswerForm(submissions, info)
        return EventStream(flight, form, asked.stream_interval)
    async with flight.cancelled_without_client(request.receive):
        outcome = await flight.outcome()

    def written() -> bytes:
        answers = [
            answer_to(submission, index, info, finished, finished.output)
            for index, (submission, finished) in enumerate(zip(submissions, outcome, strict=True))
        ]
        answer = answers[0] if asked.n == 1 else {"choices": answers}
        return json.dumps(answer, allow_nan=False).encode()

    # log-probabilities of a long output take a while to write down
    content = written() if asked.logprobs is None else await asyncio.to_thread(written)
    return Response(content, media_type="application/json")


@router.get("/health", responses=documented_errors(503))
async def health(service: ServiceOf) -> dict[str, str]:
    """Whether to leave the server alone: red if the engine has died or makes no progress."""
    return {"status": service.health()}


@router.get("/ready", responses=documented_errors(503))
async def ready(service: ServiceOf) -> dict[str, str]:
    """Whether to send requests."""
    return {"status": "ready", "model": service.open_engine().info.model_name}


@router.get("/version", responses=documented_errors(401, 503))
async def version_(service: ServiceOf) -> Version:
    """The software, the model and what it was loaded as."""
    loaded = asdict(service.engine.info)
    return Version(version=version("specdec"), model=loaded.pop("model_name"), **loaded)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}},
        **documented_errors(401),
    },
)
async def metrics(request: Request, service: ServiceOf) -> Response:
    """Metrics for Prometheus, as OpenMetrics where `Accept` names it."""
    content, media_type = service.metrics.exposition(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)
