"""The way in, the same for every endpoint that writes text: from a body to a flight."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from server.errors import (
    REQUEST_ID,
    ApiError,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    InvalidField,
    UnsupportedMediaType,
    from_validation,
    printable,
)
from server.flight import Flight
from server.messages import EngineInfo, Submission
from server.request_id import given_id
from server.resolution import resolve
from server.schemas import REQUEST_ID_PATTERN, DecodingRequest
from server.service import Service
from server.settings import Settings

SMALL_BODY = 2**16
"""Bytes in which there is no room for mistakes that take long to find."""
MOST_FIELDS = 256
"""Of one object: logit_bias may name every byte."""

Asked = TypeVar("Asked", bound=DecodingRequest)


@dataclass(frozen=True)
class Accepted(Generic[Asked]):
    """A request on its way, a submission for each of its choices."""

    asked: Asked
    request_id: str
    submissions: list[Submission]
    flight: Flight
    info: EngineInfo

    @property
    def headers(self) -> dict[str, str]:
        return {REQUEST_ID: self.request_id}


async def accept(request: Request, service: Service, schema: type[Asked]) -> Accepted[Asked]:
    """Reads, checks and submits a request; an `ApiError` if any of that cannot be."""
    try:
        # an overloaded server does not even read the body
        info = service.check_room(0).info
        body = await _read(request, service.settings)
        _check_fields(body)
        try:
            asked = schema.model_validate_json(body)
        except ValidationError as error:
            raise from_validation(error, body) from None
        request_id = request.state.request_id = _request_id(asked, request)
        submissions = resolve(asked, request_id, info, service.settings)
        flight = service.submit(submissions)
    except ApiError as error:
        service.refused(error, request.state.request_id)
        raise
    return Accepted(asked, request_id, submissions, flight, info)


async def _read(request: Request, settings: Settings) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type must be application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        message = "Content-Encoding: bodies are taken as they are, not compressed"
        code = "unsupported_content_encoding"
        raise UnsupportedMediaType(message, "Content-Encoding", code)
    body, most = bytearray(), settings.max_body_bytes
    try:
        async with asyncio.timeout(settings.client_seconds), aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise BodyTooLarge(f"the body has more than {most} bytes")
    except ClientDisconnect:
        raise ClientGone("the client went away before the body was complete") from None
    except TimeoutError:
        message = f"the body was not complete after {settings.client_seconds:g} s"
        raise BodyTooSlow(message) from None
    return bytes(body)


def _check_fields(body: bytes) -> None:
    """Refuses a body of countless fields before each is found to be wrong, which takes seconds."""
    if len(body) <= SMALL_BODY:
        return
    try:
        document = from_json(body)
    except ValueError:
        return  # validation tells what is wrong with it
    parts = {"": document, **document} if isinstance(document, dict) else {}
    for name, part in parts.items():
        if isinstance(part, dict) and len(part) > MOST_FIELDS:
            param = printable(name) or None
            where = f"{param}: " if param else ""
            raise InvalidField(f"{where}there are more than {MOST_FIELDS} fields", param)


def _request_id(asked: DecodingRequest, request: Request) -> str:
    if REQUEST_ID in request.headers and given_id(request.scope) is None:  # whichever id counts
        raise InvalidField(f"{REQUEST_ID}: must match {REQUEST_ID_PATTERN}", REQUEST_ID)
    request_id: str = asked.request_id or request.state.request_id
    return request_id
