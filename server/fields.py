"""Types of request fields: what a value must look like, and how a mistake in one is told.

Types are strict: "1" is no number, true is no 1.  Knows no request as a whole.
"""

import base64
import re
from contextlib import suppress
from typing import Annotated, LiteralString

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from specdec.config import VOCAB_SIZE

MAX_PROMPTS = 1024
MAX_STOPS = 64
MAX_STOP_BYTES = 256

_BYTE_KEY_PATTERN = r"^([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])$"

# the last character before = has bits that nothing uses and that must be 0
_BASE64_PATTERN = (
    r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/][AQgw]==)?$"
)


def wrong(param: str, message: LiteralString) -> PydanticCustomError:
    """For validators of several fields: `param` is the one at fault."""
    return PydanticCustomError("invalid_field", message, {"param": param})


def as_integer(value: object) -> object:
    """JSON has numbers of one kind: 16.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _decode_base64(value: object) -> bytes:
    if isinstance(value, str):
        try:
            decoded = base64.b64decode(value, validate=True)
        except ValueError:
            decoded = b""
        # the way back catches what the decoder lets pass, such as bits after the last byte
        if base64.b64encode(decoded).decode() == value:
            return decoded
    raise PydanticCustomError("base64", "must be a string of base64 with padding")


def _as_many(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        return (value,)
    # before each is looked at: a mistake in each of a million is a million errors
    if len(value) > MAX_STOPS:
        raise PydanticCustomError(
            "too_many", f"at most {MAX_STOPS} of stop and stop_bytes together"
        )
    return tuple(value)


def _byte_key(key: str) -> str:
    if not re.fullmatch(_BYTE_KEY_PATTERN, key):
        raise PydanticCustomError("byte", 'must have bytes as its keys, from "0" to "255"')
    return key


def _not_yet(value: object, is_neutral: ValidatorFunctionWrapHandler) -> object:
    """For fields that the interface has and the server does not do: neutral values pass."""
    with suppress(ValidationError):
        # of the same type, because Literal[1] lets true pass
        if type(is_neutral(value)) is type(value):
            return value
    raise PydanticCustomError("not_supported", "is not supported yet")


def _prompts(value: object) -> tuple[bytes, ...]:
    """One prompt or several, each a text or a list of bytes."""
    if isinstance(value, str):
        return (value.encode(),)
    if isinstance(value, list) and value:
        one = _bytes_of(value)
        if one is not None:
            return (one,)
        if len(value) > MAX_PROMPTS:
            raise PydanticCustomError("too_many", f"must be at most {MAX_PROMPTS} prompts")
        if all(isinstance(item, str) for item in value):
            return tuple(item.encode() for item in value)
        several = [_bytes_of(item) if isinstance(item, list) else None for item in value]
        if None not in several:
            return tuple(prompt for prompt in several if prompt is not None)
    raise PydanticCustomError(
        "prompt", "must be a text, a list of bytes from 0 to 255, or a list of either, not empty"
    )


def _bytes_of(value: list[object]) -> bytes | None:
    kinds = set(map(type, value))
    if kinds <= {int, float}:
        with suppress(ValueError, TypeError):  # a float with a fraction is no byte
            return bytes(map(as_integer, value) if float in kinds else value)  # type: ignore[arg-type]
    return None


def _byte_array(value: object) -> bytes:
    found = _bytes_of(value) if isinstance(value, list) else None
    if found is None:
        raise PydanticCustomError("bytes", "must be a list of bytes from 0 to 255")
    return found


def _byte_list(value: object) -> bytes:
    found = _byte_array(value)
    if len(found) > VOCAB_SIZE:
        raise PydanticCustomError("too_many", "must be at most 256 bytes")
    return found


NotYet = WrapValidator(_not_yet)

Base64 = Annotated[
    bytes,
    PlainValidator(_decode_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "pattern": _BASE64_PATTERN}),
]

OneOrMany = BeforeValidator(_as_many, json_schema_input_type=str | list[str] | None)

LogitBias = Annotated[
    dict[Annotated[str, AfterValidator(_byte_key)], Annotated[float, Field(ge=-100, le=100)]],
    Field(json_schema_extra={"propertyNames": {"pattern": _BYTE_KEY_PATTERN}}),
]

_BYTES_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}

ByteArray = Annotated[bytes, PlainValidator(_byte_array), WithJsonSchema(_BYTES_SCHEMA)]

ByteList = Annotated[
    bytes, PlainValidator(_byte_list), WithJsonSchema({**_BYTES_SCHEMA, "maxItems": VOCAB_SIZE})
]

Prompts = Annotated[
    tuple[bytes, ...],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {**_BYTES_SCHEMA, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
                {"type": "array", "items": _BYTES_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]
