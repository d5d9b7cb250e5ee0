"""What goes wrong on the way to an answer, and the one envelope in which every error leaves.

    ApiError
    ├── InvalidField          422  a field is wrong in itself
    ├── Impossible            400  well-formed, but not with this model or these limits
    ├── NotJson               400
    ├── KeyNeeded             401  no API key, or a wrong one
    ├── NoSuchModel           404
    ├── BodyTooSlow           408
    ├── Duplicate             409  the request id is in flight
    ├── BodyTooLarge          413
    ├── UnsupportedMediaType  415
    ├── Overloaded            429  the queue is full
    ├── ClientGone            499  nobody is left to read it
    ├── EngineError           500
    └── Unavailable           503  still loading, draining, or broken

Messages name fields and never repeat what the client sent as a value.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

REQUEST_ID = "X-Request-ID"

_SHOWN_MISTAKES = 4
_SHOWN_NAME = 64
_NO_SUCH_PATH = (
    "there is no such path: this server completes texts, at /generate and for OpenAI's clients at "
    "/v1/completions; it does not chat or embed, and /docs tells what else it answers"
)
_NESTED = ("stream_options",)
"""Fields that have fields, which errors name as field.field."""


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorBody


class ApiError(Exception):
    """An error for the client: `param` names the field at fault, `code` is for programs."""

    status = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        self.code = code or self.code
        self.status = status or self.status

    @property
    def type(self) -> str:
        if self.status >= 500:
            return "server_error"
        return "overloaded_error" if self.status == 429 else "invalid_request_error"

    @property
    def envelope(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidField(ApiError):
    status = 422
    code = "invalid_field"


class Impossible(ApiError):
    status = 400
    code = "impossible"


class NotJson(ApiError):
    status = 400
    code = "invalid_json"


class KeyNeeded(ApiError):
    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "a valid API key is needed, as in Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )


class NoSuchModel(ApiError):
    status = 404
    code = "model_not_found"


class Duplicate(ApiError):
    status = 409
    code = "duplicate_request_id"


class BodyTooSlow(ApiError):
    status = 408
    code = "body_too_slow"


class BodyTooLarge(ApiError):
    status = 413
    code = "body_too_large"


class UnsupportedMediaType(ApiError):
    status = 415
    code = "unsupported_media_type"


class Overloaded(ApiError):
    status = 429
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class ClientGone(ApiError):
    status = 499
    code = "client_gone"


class EngineError(ApiError):
    status = 500
    code = "engine_error"


class Unavailable(ApiError):
    status = 503
    code = "unavailable"


def from_validation(error: ValidationError, body: bytes) -> ApiError:
    """What pydantic found wrong in a body, the first few mistakes in one message."""
    mistakes = error.errors(include_url=False, include_input=False)
    first = mistakes[0]
    if first["type"] == "json_invalid":
        field = _field_with_lone_surrogate(body)
        if field is not None:
            return InvalidField(f"{field}: has a lone surrogate, which is not text", field)
        return NotJson(f"the body is not valid JSON: {first['ctx']['error']}")
    shown = []
    params = []
    for mistake in mistakes[:_SHOWN_MISTAKES]:
        # validators of several fields say in their context which one is at fault
        param = mistake.get("ctx", {}).get("param")
        if param is None and mistake["loc"]:
            names = mistake["loc"][: 2 if mistake["loc"][0] in _NESTED else 1]
            param = printable(".".join(map(str, names)))
        message = mistake["msg"]
        if mistake["type"] == "extra_forbidden":
            message = "no such field"
        shown.append(f"{param}: {message}" if param else message)
        params.append(param)
    if len(mistakes) > _SHOWN_MISTAKES:
        shown.append(f"and {len(mistakes) - _SHOWN_MISTAKES} more")
    return InvalidField("; ".join(shown), params[0], first["type"])


def given_twice(name: str) -> ApiError:
    return InvalidField(f"{printable(name)}: is given twice", printable(name), "duplicate_field")


def too_many_fields(most: int, name: str = "") -> ApiError:
    """The body, or what it has under a name, is an object of countless fields."""
    where = f"{printable(name)}: " if name else ""
    return InvalidField(f"{where}there are more than {most} fields", printable(name) or None)


def _field_with_lone_surrogate(body: bytes) -> str | None:
    """The top-level field for which pydantic's parser refused the body without naming it."""
    try:
        document = json.loads(body)
        fields = document.items() if isinstance(document, dict) else ()
        return next((printable(name) for name, value in fields if _is_no_text([name, value])), None)
    except (ValueError, RecursionError):
        return None


def _is_no_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def printable(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:_SHOWN_NAME]


def install_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return respond(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = _NO_SUCH_PATH if error.status_code == 404 else str(error.detail)
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return respond(ApiError(message, None, code, error.status_code, headers))


def respond(error: ApiError) -> Response:
    """The response that an error is, in its envelope."""
    return Response(json.dumps(error.envelope), error.status, error.headers, "application/json")
