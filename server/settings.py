"""What the operator decides: one frozen record, read from flags and SPECDEC_ variables.

Flags win over variables, variables over the defaults.  Each default is stated here and nowhere
else.  Knows nothing of what the values are used for.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

_PREFIX = "SPECDEC_"


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
    )

    checkpoint: Path = Field(
        default=Path("checkpoints/default"),
        description="directory of the model to serve, with its prophet if it has one",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(
        default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where the model runs; auto takes a GPU if there is one"
    )
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = Field(
        default="auto", description="number format of the weights; auto takes what suits the device"
    )
    max_batch: int = Field(default=8, ge=1, le=256, description="requests decoded at the same time")
    max_context: int | None = Field(
        default=None,
        ge=1,
        description="bytes of prompt and output together; the model's own if left out",
    )
    draft_length: int = Field(
        default=5, ge=1, le=16, description="bytes drafted per round where a request does not say"
    )
    mode: Literal["base", "speculative", "auto"] = Field(
        default="auto", description="decode path of requests that do not name one"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe messages to log"
    )


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
