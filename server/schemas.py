"""What a request may say, field by field.

Knows what is wrong with a request whatever the model; what a given model makes impossible is
`server.service`'s to say.  Types are strict: "1" is no number, true is no 1.
"""

import base64
import re
from contextlib import suppress
from typing import Annotated, Literal, LiteralString, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.messages import Mode
from specdec.sampling import SamplingParams

MAX_STOPS = 16
MAX_STOP_BYTES = 256
REQUEST_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"

_BYTE_KEY_PATTERN = r"^([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])$"

_NEUTRAL = SamplingParams()


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
    return tuple(value) if isinstance(value, list) else (value,)


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


def _wrong(param: str, message: LiteralString) -> PydanticCustomError:
    return PydanticCustomError("invalid_field", message, {"param": param})


NotYet = WrapValidator(_not_yet)

Base64 = Annotated[
    bytes,
    PlainValidator(_decode_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class GenerateRequest(BaseModel):
    """One text to continue.  Exactly one of `prompt` and `prompt_bytes` must be given."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    prompt: str | None = Field(
        None, description="Text to continue, as UTF-8. If empty, the end-of-document byte."
    )
    prompt_bytes: Base64 | None = Field(None, description="Bytes to continue, as base64.")
    max_tokens: int | None = Field(
        None, ge=1, description="Most bytes to write; left out, 256 or what room is left."
    )
    min_tokens: int = Field(
        _NEUTRAL.min_tokens, ge=0, description="Bytes before which the document may not end."
    )
    temperature: float = Field(
        _NEUTRAL.temperature, ge=0, le=1e6, description="0 is greedy, 1 is the model's own."
    )
    top_k: int = Field(
        _NEUTRAL.top_k, ge=0, le=256, description="Choose among so many bytes; 0 is all."
    )
    top_p: float = Field(
        _NEUTRAL.top_p, gt=0, le=1, description="Choose among the likeliest of this probability."
    )
    min_p: float = Field(
        _NEUTRAL.min_p, ge=0, le=1, description="Drop bytes below this share of the likeliest's."
    )
    presence_penalty: float = Field(
        _NEUTRAL.presence_penalty, ge=-100, le=100, description="Off logits of bytes in the output."
    )
    frequency_penalty: float = Field(
        _NEUTRAL.frequency_penalty, ge=-100, le=100, description="The same, for each occurrence."
    )
    repetition_penalty: float = Field(
        _NEUTRAL.repetition_penalty,
        ge=1e-3,
        le=1e3,
        description="Divides positive and multiplies negative logits of bytes in the output.",
    )
    logit_bias: dict[
        Annotated[str, AfterValidator(_byte_key)], Annotated[float, Field(ge=-100, le=100)]
    ] = Field(
        {},
        description="What to add to the logits of bytes.",
        json_schema_extra={"propertyNames": {"pattern": _BYTE_KEY_PATTERN}},
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        le=2**63 - 1,
        description="Makes the output reproducible; left out, drawn and told in the answer.",
    )
    stop: Annotated[
        tuple[str, ...],
        BeforeValidator(_as_many, json_schema_input_type=str | list[str] | None),
    ] = Field((), description="Texts that end the output and are left out of it.")
    stop_bytes: Annotated[
        tuple[Base64, ...],
        BeforeValidator(_as_many, json_schema_input_type=str | list[str] | None),
    ] = Field((), description="The same as base64; up to 16 of both kinds, of 256 bytes each.")
    ignore_eos: bool = Field(False, description="Do not end at the end-of-document byte.")
    mode: Mode | None = Field(
        None, description="Decode path; the output is the same. Left out, the server's default."
    )
    draft_length: int | None = Field(
        None, ge=1, le=16, description="Bytes drafted per round in the speculative path."
    )
    stream: bool = Field(False, description="Send the output as it comes, as server-sent events.")
    request_id: str | None = Field(
        None,
        pattern=REQUEST_ID_PATTERN,
        description="Name of the request while it runs; else the header X-Request-ID's, or drawn.",
    )
    n: Annotated[Literal[1], NotYet] = 1
    echo: Annotated[Literal[False], NotYet] = False
    logprobs: Annotated[None, NotYet] = None
    timeout_s: Annotated[None, NotYet] = None
    stream_interval: Annotated[Literal[0] | None, NotYet] = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.prompt is None) == (self.prompt_bytes is None):
            raise _wrong("prompt", "give exactly one of prompt and prompt_bytes")
        for param, stops in (("stop", self._text_stops), ("stop_bytes", self.stop_bytes)):
            if not all(0 < len(stop) <= MAX_STOP_BYTES for stop in stops):
                raise _wrong(param, "each must have 1 to 256 bytes")
        if len(self.stops) > MAX_STOPS:
            param = "stop" if len(self.stop) > MAX_STOPS else "stop_bytes"
            raise _wrong(param, "at most 16 of stop and stop_bytes together")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", "must not be above max_tokens")
        if self.draft_length is not None and self.mode is Mode.BASE:
            raise _wrong("draft_length", "goes with mode speculative or auto only")
        return self

    @property
    def prompt_field(self) -> str:
        return "prompt" if self.prompt is not None else "prompt_bytes"

    @property
    def content(self) -> bytes:
        """The prompt as bytes, from whichever field it came in."""
        if self.prompt is not None:
            return self.prompt.encode()
        assert self.prompt_bytes is not None
        return self.prompt_bytes

    @property
    def _text_stops(self) -> tuple[bytes, ...]:
        return tuple(text.encode() for text in self.stop)

    @property
    def stops(self) -> tuple[bytes, ...]:
        return self._text_stops + self.stop_bytes

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            min_tokens=self.min_tokens,
            logit_bias=tuple((int(byte), bias) for byte, bias in self.logit_bias.items()),
        )
