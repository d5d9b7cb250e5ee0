"""The way in, the same for every endpoint that writes text: from a body to a flight."""

import re
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from server.errors import (
    REQUEST_ID,
    ApiError,
    BodyTooLarge,
    ClientGone,
    InvalidField,
    UnsupportedMediaType,
    from_validation,
)
from server.flight import Flight
from server.messages import EngineInfo, Submission
from server.resolution import resolve
from server.schemas import REQUEST_ID_PATTERN, DecodingRequest
from server.service import Service

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
    # told in errors too, and instead of the header once the body names another
    request.state.request_id = given_id(request)
    try:
        # an overloaded server does not even read the body
        info = service.check_room(0).info
        body = await _read(request, service.settings.max_body_bytes)
        try:
            asked = schema.model_validate_json(body)
        except ValidationError as error:
            raise from_validation(error, body) from None
        request_id = _request_id(asked, request)
        request.state.request_id = request_id
        submissions = resolve(asked, request_id, info, service.settings)
        flight = service.submit(submissions)
    except ApiError as error:
        service.refused(error, request.state.request_id)
        raise
    return Accepted(asked, request_id, submissions, flight, info)


async def _read(request: Request, most: int) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type must be application/json")
    body = bytearray()
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise BodyTooLarge(f"the body has more than {most} bytes")
    except ClientDisconnect:
        raise ClientGone("the client went away before the body was complete") from None
    return bytes(body)


def given_id(request: Request) -> str | None:
    """The id in the header, if it is one."""
    header = request.headers.get(REQUEST_ID)
    return header if header and re.fullmatch(REQUEST_ID_PATTERN, header) else None


def _request_id(asked: DecodingRequest, request: Request) -> str:
    if asked.request_id is not None:
        return asked.request_id
    if REQUEST_ID not in request.headers:
        return uuid.uuid4().hex
    header = given_id(request)
    if header is None:
        raise InvalidField(f"{REQUEST_ID}: must match {REQUEST_ID_PATTERN}", REQUEST_ID)
    return header
