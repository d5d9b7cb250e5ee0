"""What a request to /v1/completions may say: OpenAI's fields, and those of /generate.

As OpenAI's clients send null for what they leave alone, null is here the same as leaving out.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.fields import NotYet, Prompts, wrong
from server.vllm_schemas import VllmParameters


def _null_in_schema(schema: dict[str, Any]) -> None:
    """Every field may be null; an empty default says no more, and generators stumble over it."""
    for name, field in schema["properties"].items():
        told = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        if told.get("default") in ([], {}):
            del told["default"]
        options = [option for option in field.get("anyOf", [field]) if option != {"type": "null"}]
        schema["properties"][name] = {**told, "anyOf": [*options, {"type": "null"}]}


class StreamOptions(BaseModel):
    """What a stream carries besides output."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool | None = Field(
        None, description="Send a last chunk of no choices with the usage."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage, tell the usage so far in every chunk."
    )
    include_obfuscation: Annotated[Literal[False] | None, NotYet] = None


class CompletionRequest(VllmParameters):
    """Texts to continue, each giving a choice.  A token is a byte."""

    model_config = ConfigDict(json_schema_extra=_null_in_schema)

    default_max_tokens: ClassVar[int] = 16
    invalid_status: ClassVar[int] = 400

    model: str | None = Field(
        None, description="A name of the model served; left out or empty, whichever that is."
    )
    prompt: Prompts = Field(
        (b"",),
        description="One prompt or several, each a text or a list of bytes. An empty one is the "
        "end-of-document byte.",
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        description="Most bytes to write; left out, 16 or what room is left. 0 goes with echo.",
    )
    stream_options: StreamOptions | None = Field(None, description="Goes with stream.")
    user: str | None = Field(None, description="Accepted, and without any effect.")
    best_of: int = Field(1, ge=1, description="Must be n or 1: nothing is chosen among outputs.")
    suffix: Annotated[Literal[""] | None, NotYet] = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _null_is_left_out(
        cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> object:
        assert info.field_name is not None
        return cls.model_fields[info.field_name].default if value is None else validate(value)

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of not in (1, self.n):
            raise PydanticCustomError(
                "not_supported", "best_of other than n is not supported", {"param": "best_of"}
            )
        return self

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "goes with stream only")
        return self

    @property
    def prompts(self) -> tuple[bytes, ...]:
        return self.prompt

    @property
    def wanted_model(self) -> str | None:
        return self.model

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        asked = self.stream_options
        return self.include_usage and bool(asked and asked.continuous_usage_stats)
