"""The endpoints: what comes in over HTTP, checked, to the service; what it says, out again."""

import re
import uuid
from contextlib import aclosing
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from server.answers import Answer, Version, answer_to
from server.errors import (
    REQUEST_ID,
    ApiError,
    BodyTooLarge,
    ClientGone,
    EngineError,
    ErrorEnvelope,
    InvalidField,
    UnsupportedMediaType,
    from_validation,
)
from server.messages import Failed, Progress
from server.schemas import REQUEST_ID_PATTERN, GenerateRequest
from server.service import Service, resolve
from server.streaming import EventStream

MAX_BODY_BYTES = 16 * 2**20

router = APIRouter()


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


def _body_documentation() -> dict[str, Any]:
    """OpenAPI for a body that the handler parses itself, to refuse it in its own words."""
    schema = GenerateRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    # the answer brings the same definitions to the components
    del schema["$defs"]
    examples = {
        "text": {"prompt": "The ", "max_tokens": 64, "temperature": 0},
        "bytes": {"prompt_bytes": "AAH/", "max_tokens": 16, "seed": 1, "stop_bytes": ["AA=="]},
        "stream": {"prompt": "def ", "top_p": 0.9, "stop": ["\n\n"], "stream": True},
    }
    content = {
        "schema": schema,
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    name = {"type": "string", "pattern": REQUEST_ID_PATTERN}
    header = {"name": REQUEST_ID, "in": "header", "schema": name}
    body = {"required": True, "content": {"application/json": content}}
    return {"requestBody": body, "parameters": [header]}


@router.post(
    "/generate",
    response_model=Answer,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **{status: {"model": ErrorEnvelope} for status in (400, 409, 413, 415, 422, 500, 503)},
    },
    openapi_extra=_body_documentation(),
)
async def generate(request: Request, service: ServiceOf) -> Response:
    """Continue a text.

    With `stream`, an event for each piece of output, `text` and `bytes`; the last has the answer's
    other fields too.
    """
    try:
        parsed = await _parse(request)
        request_id = _request_id(parsed, request)
        request.state.request_id = request_id
        info = service.engine.info
        submission = resolve(parsed, request_id, info, service.settings)
        flight = service.submit(submission)
    except ApiError as error:
        service.metrics.rejected(error.code)
        raise
    headers = {REQUEST_ID: request_id}
    if parsed.stream:
        return EventStream(flight, submission, info, headers)
    output = bytearray()
    async with flight.cancelled_without_client(request.receive):
        while isinstance(event := await flight.next_event(), Progress):
            output += event.output
    if isinstance(event, Failed):
        raise EngineError(event.message)
    answer = answer_to(submission, info, event, bytes(output) + event.output)
    return JSONResponse(answer.model_dump(mode="json"), headers=headers)


async def _parse(request: Request) -> GenerateRequest:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type must be application/json")
    body = bytearray()
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise BodyTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise ClientGone("the client went away before the body was complete") from None
    try:
        return GenerateRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise from_validation(error, bytes(body)) from None


def _request_id(parsed: GenerateRequest, request: Request) -> str:
    if parsed.request_id is not None:
        return parsed.request_id
    header = request.headers.get(REQUEST_ID)
    if header is None:
        return uuid.uuid4().hex
    if not re.fullmatch(REQUEST_ID_PATTERN, header):
        raise InvalidField(f"{REQUEST_ID}: must match {REQUEST_ID_PATTERN}", REQUEST_ID)
    return header


@router.get("/health", responses={503: {"model": ErrorEnvelope}})
async def health(service: ServiceOf) -> dict[str, str]:
    """Whether to leave the server alone: red if the engine has died or makes no progress."""
    return {"status": service.health()}


@router.get("/ready", responses={503: {"model": ErrorEnvelope}})
async def ready(service: ServiceOf) -> dict[str, str]:
    """Whether to send requests."""
    return {"status": "ready", "model": service.engine.info.model_name}


@router.get("/version", responses={503: {"model": ErrorEnvelope}})
async def version_(service: ServiceOf) -> Version:
    """The software, the model and what it was loaded as."""
    loaded = asdict(service.engine.info)
    return Version(version=version("specdec"), model=loaded.pop("model_name"), **loaded)


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceOf) -> Response:
    """Metrics for Prometheus."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
