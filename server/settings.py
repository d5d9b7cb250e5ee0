"""What the operator decides: one frozen record, read from flags and SPECDEC_ variables.

Flags win over variables, variables over the defaults.  Each default is stated here and nowhere
else.  Knows nothing of what the values are used for.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, LiteralString

from pydantic import (
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, CliApp, CliImplicitFlag, NoDecode, SettingsConfigDict

_PREFIX = "SPECDEC_"
_KEY_PATTERN = r"[!-+\--~]+"
_KEY_RULE: LiteralString = "a key must be of visible ASCII characters but the comma"
_NAME_PATTERN = r"[!-+\--~]{1,256}"
_ORIGIN_PATTERN = r"\*|https?://[^/\s,]+"


def _split(value: object) -> object:
    """Flags that are repeated and variables arrive as one text with commas."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


_Several = (NoDecode, BeforeValidator(_split))


class Settings(BaseSettings):
    """Serve a byte-level language model over HTTP, with lossless speculative decoding."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        cli_prog_name="python -m server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
        cli_shortcuts={
            "api-keys": "api-key",
            "cors-origins": "cors-origin",
            "served-model-names": "served-model-name",
        },
        allow_inf_nan=False,
    )

    checkpoint: Path = Field(
        default=Path("checkpoints/default"),
        description="directory of the model to serve, with its prophet if it has one",
    )
    prophet: Path | None = Field(
        default=None,
        description="directory of another prophet for the model; the checkpoint's own if left out",
    )
    served_model_names: Annotated[tuple[str, ...], *_Several] = Field(
        default=(),
        description="names that requests may give the model; answers and metrics have the first; "
        "several flags or commas; left out, the checkpoint directory's name, or its parent's "
        "where that is checkpoint",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(
        default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where the model runs; auto takes a GPU if there is one"
    )
    dtype: Literal["auto", "bfloat16", "float32", "float64", "int8"] = Field(
        default="auto",
        description="number format of the weights; auto takes what suits the device; int8, on the "
        "CPU, rounds the model's blocks further: another model than the checkpoint, half as large",
    )
    kernels: Literal["auto", "native", "cuda", "torch"] = Field(
        default="auto",
        description="what passes run on: the core compiled for this processor, Triton kernels in "
        "CUDA graphs, torch's operations, or the first of them that can be had",
    )
    engine: Literal["process", "thread"] = Field(
        default="process", description="where decoding runs: beside HTTP, or in its process"
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="requests decoded at the same time")
    max_context: int | None = Field(
        default=None,
        ge=1,
        description="bytes of prompt and output together; the model's own if left out",
    )
    cache_mib: int | None = Field(
        default=None,
        ge=1,
        description="memory for keys and values; where max-batch requests need more, fewer run",
    )
    draft_length: int = Field(
        default=5,
        ge=1,
        le=16,
        description="bytes drafted per round at most, in mode speculative, if a request is silent",
    )
    draft_p_min: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="on native kernels drafts end before a byte that, with all before it, is less "
        "likely to be kept; left out, what pays by measured costs; 0: all are made",
    )
    lookup_length: int = Field(
        default=16,
        ge=0,
        le=16,
        description="bytes that mode auto drafts at most from the text itself, where its last ones "
        "stood before, on native kernels; 0: the prophet alone drafts",
    )
    mode: Literal["base", "speculative", "auto"] = Field(
        default="auto", description="decode path of requests that do not name one"
    )
    parity_every: int = Field(
        default=1000,
        ge=0,
        description="of the requests in modes speculative and auto one in so many is decoded again "
        "by plain rounds, in a slot that nobody needs, and compared; 0: none",
    )
    max_waiting: int = Field(
        default=256, ge=0, description="requests that may wait for a slot; more are refused"
    )
    max_waiting_bytes: int = Field(
        default=16 * 2**20, ge=0, description="bytes of the prompts that may wait, together"
    )
    max_body_bytes: int = Field(
        default=4 * 2**20, ge=1, description="bytes that the body of a request may have"
    )
    max_connections: int | None = Field(
        default=None,
        ge=16,
        description="connections that may be open; half of the file descriptors that the process "
        "may have, and at most 4096, if left out",
    )
    client_seconds: float = Field(
        default=60.0,
        gt=0,
        description="seconds that a client may take to send the head of a request, or its body, or "
        "to read what waits for it, and that its connection may be idle",
    )
    max_seconds: float = Field(
        default=600.0, gt=0, description="seconds after which a request ends with what it has"
    )
    stall_seconds: float = Field(
        default=30.0, gt=0, description="seconds without a round after which /health turns red"
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="seconds that requests have to finish when told to stop"
    )
    api_keys: Annotated[tuple[SecretStr, ...], *_Several] = Field(
        default=(),
        description="keys of which a request must bring one; several flags or commas. "
        "Whoever lists processes sees flags: prefer the variable or the file",
    )
    api_key_file: FilePath | None = Field(default=None, description="file of keys, one a line")
    open_metrics: CliImplicitFlag[bool] = Field(
        default=False, description="answer /metrics without a key"
    )
    cors_origins: Annotated[tuple[str, ...], *_Several] = Field(
        default=(),
        description="origins whose pages may ask from a browser; several flags or commas",
    )
    ssl_certfile: FilePath | None = Field(
        default=None, description="certificate chain to serve HTTPS with; goes with the key"
    )
    ssl_keyfile: FilePath | None = Field(
        default=None, validate_default=True, description="private key of the certificate"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe messages to log"
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="how messages look: lines for people, or a JSON object each"
    )
    log_prompts: CliImplicitFlag[bool] = Field(
        default=False, description="log the prompts of requests; whoever reads the log reads them"
    )

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            if not _is_key(key.get_secret_value()):
                raise PydanticCustomError("api_key", _KEY_RULE)
        return keys

    @field_validator("served_model_names")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(_NAME_PATTERN, name):
                raise PydanticCustomError("name", "must be of 1 to 256 visible ASCII characters")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(_ORIGIN_PATTERN, origin):
                raise PydanticCustomError("origin", "must be like https://example.org, or *")
        return origins

    @field_validator("ssl_keyfile")
    @classmethod
    def _check_pair(cls, keyfile: Path | None, info: ValidationInfo) -> Path | None:
        if "ssl_certfile" in info.data and (keyfile is None) != (info.data["ssl_certfile"] is None):
            raise PydanticCustomError("pair", "goes with the certificate, and that with the key")
        return keyfile

    @field_validator("api_key_file")
    @classmethod
    def _check_key_file(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                keys = _lines(path)
            except (OSError, UnicodeDecodeError):
                raise PydanticCustomError("key_file", "cannot be read as text") from None
            if not keys or not all(map(_is_key, keys)):
                raise PydanticCustomError("key_file", _KEY_RULE + ", and the file needs one")
        return path

    def names_of(self, model: str) -> tuple[str, ...]:
        """The names under which a model that was loaded as this one is served."""
        return self.served_model_names or (model,)

    @property
    def model_name(self) -> str:
        """The first name; the trainer calls every directory checkpoint, so its run's counts."""
        if self.served_model_names:
            return self.served_model_names[0]
        path = self.checkpoint.resolve()
        return path.parent.name if path.name == "checkpoint" and path.parent.name else path.name

    @property
    def all_keys(self) -> tuple[bytes, ...]:
        """Those of flags, variable and file; without any, whoever reaches the server may ask."""
        given = [key.get_secret_value() for key in self.api_keys]
        return tuple(key.encode() for key in [*given, *_lines(self.api_key_file)])


def _is_key(text: str) -> bool:
    return re.fullmatch(_KEY_PATTERN, text) is not None


def _lines(path: Path | None) -> list[str]:
    """The lines of a file that are not blank."""
    lines = path.read_text("utf-8").splitlines() if path is not None else []
    return [line.strip() for line in lines if line.strip()]


def read_settings(args: Sequence[str] | None = None) -> Settings:
    """The settings of this process; a mistake in them ends it with one line and status 2."""
    try:
        return CliApp.run(Settings, cli_args=None if args is None else list(args))
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_input=False):
            name = str(mistake["loc"][0])
            sources = f"--{name.replace('_', '-')} or {_PREFIX}{name.upper()}"
            print(f"python -m server: error: {sources}: {mistake['msg']}", file=sys.stderr)
        raise SystemExit(2) from None
