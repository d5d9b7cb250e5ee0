"""The endpoints of this server's own: /generate and what operators ask."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.answers import Answer, Piece, Version, answer_to
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
    """An event for each piece of output; the last is the answer, with what was left to send."""

    def __init__(self, submission: Submission, info: EngineInfo) -> None:
        self._submission = submission
        self._info = info
        self._encoder = OutputEncoder()
        self._output = bytearray()

    def piece(self, choice: int, event: Progress | Finished) -> Iterator[bytes]:
        self._output += event.output
        encoded = self._encoder.encode(event.output, final=isinstance(event, Finished))
        if isinstance(event, Progress):
            yield server_sent_event(encoded)
        else:
            answer = answer_to(self._submission, self._info, event, bytes(self._output))
            yield server_sent_event({**answer.model_dump(mode="json"), **encoded})

    def error(self, error: ApiError) -> Iterator[bytes]:
        yield server_sent_event(error.envelope)

    def end(self) -> Iterator[bytes]:
        return iter(())


@router.post(
    "/generate",
    response_model=Answer,
    responses={
        200: documented_events(Piece, Answer),
        **documented_errors(400, 401, 409, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra=documented_body(
        GenerateRequest,
        text={"prompt": "The ", "max_tokens": 64, "temperature": 0},
        bytes={"prompt_bytes": "AAH/", "max_tokens": 16, "seed": 1, "stop_bytes": ["AA=="]},
        stream={"prompt": "def ", "top_p": 0.9, "stop": ["\n\n"], "stream": True},
    ),
)
async def generate(request: Request, service: ServiceOf) -> Response:
    """Continue a text.

    With `stream`, an event for each piece of output, `text` and `bytes`; the last has the answer's
    other fields too.
    """
    accepted = await accept(request, service, GenerateRequest)
    asked, flight, info = accepted.asked, accepted.flight, accepted.info
    (submission,) = accepted.submissions
    if asked.stream:
        form = _AnswerForm(submission, info)
        return EventStream(flight, form, accepted.headers, asked.stream_interval)
    async with flight.cancelled_without_client(request.receive):
        ((finished, output),) = await flight.outcome()
    answer = answer_to(submission, info, finished, output)
    return JSONResponse(answer.model_dump(mode="json"), headers=accepted.headers)


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


@router.get("/metrics", response_class=Response, responses=documented_errors(401))
async def metrics(service: ServiceOf) -> Response:
    """Metrics for Prometheus."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
