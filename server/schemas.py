"""What a request may say, field by field.

Knows what is wrong with a request whatever the model; what a given model makes impossible is
`server.resolution`'s to say.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.fields import (
    MAX_STOP_BYTES,
    MAX_STOPS,
    Base64,
    LogitBias,
    OneOrMany,
    as_integer,
    wrong,
)
from server.messages import Mode
from specdec.sampling import SamplingParams

MAX_N = 128
MAX_CHOICES = 1024
MAX_LOGPROBS = 20
REQUEST_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"

_NEUTRAL = SamplingParams()


class DecodingRequest(BaseModel):
    """What every endpoint that writes text takes, whatever else it does."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    default_max_tokens: ClassVar[int] = 256
    invalid_status: ClassVar[int] = 422
    """HTTP's status where a field is wrong in itself."""

    max_tokens: int | None = Field(
        None,
        ge=0,
        description="Most bytes to write; left out, 256 or what room is left. 0 goes with echo.",
    )
    min_tokens: int = Field(
        _NEUTRAL.min_tokens,
        ge=0,
        le=1 << 40,
        description="Bytes before which the document may not end.",
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
    logit_bias: LogitBias = Field({}, description="What to add to the logits of bytes.")
    seed: int | None = Field(
        None,
        ge=-(2**63),
        le=2**63 - 1,
        description="Makes the output reproducible; left out, drawn and told in the answer.",
    )
    stop: Annotated[tuple[str, ...], OneOrMany] = Field(
        (), description="Texts that end the output and are left out of it."
    )
    stop_bytes: Annotated[tuple[Base64, ...], OneOrMany] = Field(
        (), description="The same as base64; up to 64 of both kinds, of 256 bytes each."
    )
    n: int = Field(
        1, ge=1, le=MAX_N, description="Outputs for each prompt; the seeds are seed, seed + 1, …"
    )
    echo: bool = Field(False, description="Begin the output with the prompt.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Tell the model's log-probability, sampling parameters aside, of each byte of "
        "the output, and those of so many likeliest bytes.",
    )
    ignore_eos: bool = Field(False, description="Do not end at the end-of-document byte.")
    mode: Mode | None = Field(
        None,
        description="Decode path; the output is the same. auto drafts as much as pays, or nothing. "
        "Left out, the server's default.",
    )
    draft_length: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Bytes drafted per round at most: in mode speculative all that are likely "
        "enough to be kept, in mode auto as many of them as pay.",
    )
    stream: bool = Field(False, description="Send the output as it comes, as server-sent events.")
    stream_interval: float = Field(
        0, ge=0, le=3600, description="Seconds between two events of a stream, at least."
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the output ends as it is, with finish_reason timeout; "
        "left out, the server's limit.",
    )
    request_id: str | None = Field(
        None,
        pattern=REQUEST_ID_PATTERN,
        description="Name of the request while it runs; else the header X-Request-ID's, or drawn.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _integral_floats_are_integers(cls, value: object) -> object:
        return as_integer(value)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for param, stops in (("stop", self._text_stops), ("stop_bytes", self.stop_bytes)):
            if not all(0 < len(stop) <= MAX_STOP_BYTES for stop in stops):
                raise wrong(param, "each must have 1 to 256 bytes")
        if len(self.stop) + len(self.stop_bytes) > MAX_STOPS:
            param = "stop" if len(self.stop) > MAX_STOPS else "stop_bytes"
            raise wrong(param, "at most 64 of stop and stop_bytes together")
        if self.max_tokens == 0 and not self.tells_prompt:
            raise wrong("max_tokens", "0 goes with echo only")
        if self.n * len(self.prompts) > MAX_CHOICES:
            raise wrong("n", "at most 1024 outputs, n of each prompt")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise wrong("min_tokens", "must not be above max_tokens")
        if self.draft_length is not None and self.mode is Mode.BASE:
            raise wrong("draft_length", "goes with mode speculative or auto only")
        if self.stream_interval and not self.stream:
            raise wrong("stream_interval", "goes with stream only")
        return self

    @property
    @abstractmethod
    def prompts(self) -> tuple[bytes, ...]:
        """The texts to continue, at least one; one may be empty."""

    @property
    def prompt_field(self) -> str:
        """The field in which they came."""
        return "prompt"

    @property
    def wanted_model(self) -> str | None:
        """The model's name, if the request is for one by name."""
        return None

    @property
    def tells_prompt(self) -> bool:
        """Whether the answer says something of the prompt."""
        return self.echo

    @property
    def alternatives(self) -> int | None:
        """How many likeliest bytes are wanted beside each byte's log-probability, None: nothing."""
        return self.logprobs

    @property
    def includes_stop(self) -> bool:
        """Whether the stop string that ends the output is a part of it."""
        return False

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
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            min_tokens=self.min_tokens,
            logit_bias=tuple((int(byte), bias) for byte, bias in self.logit_bias.items()),
        )


class GenerateRequest(DecodingRequest):
    """One text to continue.  Exactly one of `prompt` and `prompt_bytes` must be given."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": [given],
                    "properties": {given: {"type": "string"}, absent: {"type": "null"}},
                }
                for given, absent in (("prompt", "prompt_bytes"), ("prompt_bytes", "prompt"))
            ]
        }
    )

    prompt: str | None = Field(
        None, description="Text to continue, as UTF-8. If empty, the end-of-document byte."
    )
    prompt_bytes: Base64 | None = Field(None, description="Bytes to continue, as base64.")

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.prompt_bytes is None):
            raise wrong("prompt", "give exactly one of prompt and prompt_bytes")
        return self

    @property
    def prompt_field(self) -> str:
        return "prompt" if self.prompt is not None else "prompt_bytes"

    @property
    def prompts(self) -> tuple[bytes, ...]:
        return (self.prompt.encode() if self.prompt is not None else self.prompt_bytes or b"",)
