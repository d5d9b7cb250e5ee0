"""The way in, the same for every endpoint that writes text: from a body to a flight."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
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
    given_twice,
    too_many_fields,
)
from server.flight import Flight
from server.messages import EngineInfo, Submission
from server.request_id import given_id
from server.resolution import resolve
from server.schemas import REQUEST_ID_PATTERN, DecodingRequest
from server.service import Service
from server.settings import Settings

MOST_FIELDS = 256
"""Of one object: logit_bias may name every byte."""

Asked = TypeVar("Asked", bound=DecodingRequest)
Body = TypeVar("Body", bound=BaseModel)


@dataclass
class _Fault:
    """An object that is refused, and where it stands as far as that is known."""

    told: Callable[[str], ApiError]
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Accepted(Generic[Asked]):
    """A request on its way, a submission for each of its choices."""

    asked: Asked
    submissions: list[Submission]
    flight: Flight
    info: EngineInfo


async def accept(request: Request, service: Service, schema: type[Asked]) -> Accepted[Asked]:
    """Reads, checks and submits a request; an `ApiError` if any of that cannot be."""
    with noting_refusals(request, service, schema.invalid_status):
        # an overloaded server does not even read the body
        info = service.check_room(0).info
        asked = await read(request, service.settings, schema)
        check_id(request)
        if asked.request_id is not None:
            request.state.request_id = asked.request_id
        request_id: str = request.state.request_id
        submissions = resolve(asked, request_id, info, service.settings)
        flight = service.submit(submissions)
    return Accepted(asked, submissions, flight, info)


@contextmanager
def noting_refusals(
    request: Request, service: Service, invalid_status: int = InvalidField.status
) -> Iterator[None]:
    """Counts and logs a refusal; one for a field that is wrong in itself gets that status."""
    try:
        yield
    except ApiError as error:
        if isinstance(error, InvalidField):
            error.status = invalid_status
        service.refused(error, request.state.request_id)
        raise


async def read(request: Request, settings: Settings, schema: type[Body]) -> Body:
    """The body, checked."""
    body = await _read_bytes(request, settings)
    _check_objects(body)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error, body) from None


async def _read_bytes(request: Request, settings: Settings) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the Content-Type must be application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        message = "Content-Encoding: bodies are taken as they are, not compressed"
        code = "unsupported_content_encoding"
        raise UnsupportedMediaType(message, "Content-Encoding", code)
    body, most = bytearray(), settings.max_body_bytes
    too_large = BodyTooLarge(f"the body has more than {most} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large  # a client that waits to be asked for it need not send it
    try:
        async with asyncio.timeout(settings.client_seconds), aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise too_large
    except ClientDisconnect:
        raise ClientGone("the client went away before the body was complete") from None
    except TimeoutError:
        message = f"the body was not complete after {settings.client_seconds:g} s"
        raise BodyTooSlow(message) from None
    return bytes(body)


def _check_objects(body: bytes) -> None:
    """Refuses names that are given twice, of which parsers silently take one, and objects of
    countless fields before each is found to be wrong, which takes seconds."""
    faults: list[_Fault] = []

    def look(fields: list[tuple[str, object]]) -> _Fault | None:
        """What stands for an object in the one around it, which knows its name."""
        if len(fields) > MOST_FIELDS:
            faults.append(_Fault(partial(too_many_fields, MOST_FIELDS)))
            return faults[-1]
        seen: set[str] = set()
        for name, value in fields:
            if isinstance(value, _Fault):
                value.names.insert(0, name)
                return value
            if name in seen:
                faults.append(_Fault(given_twice, [name]))
                return faults[-1]
            seen.add(name)
        return None

    with suppress(ValueError, RecursionError):  # validation tells what is wrong with it
        json.loads(body, object_pairs_hook=look)
    if faults:
        raise faults[0].told(".".join(faults[0].names))


def check_id(request: Request) -> None:
    """Refuses a header that is no id, whichever id counts."""
    if REQUEST_ID in request.headers and given_id(request.scope) is None:
        raise InvalidField(f"{REQUEST_ID}: must match {REQUEST_ID_PATTERN}", REQUEST_ID)
