"""What the flags of a run may be: ranges, and shapes that its export would not be read with.

Ranges are stated here; what a shape may be is not: the checkpoint reader's own checks are run on
what the exporter would write.  Errors are ValueErrors that open with the flag.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.config import ModelConfig, ProphetConfig
from specdec.hf_config import hugging_face_fields, model_config
from specdec.prophet_config import prophet_config, prophet_fields


def flag(name: str) -> str:
    """The flag that sets a field of the configuration."""
    return "--checkpoint" if name == "frozen" else "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Range:
    """From `least` to `most`; `above` and `below` leave out the bound itself.

    Neither NaN nor an infinity lies in any range.
    """

    least: int
    most: int
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        inside = self.least < value if self.above else self.least <= value
        return inside and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        return (
            f"{'above' if self.above else 'at least'} {self.least} and "
            f"{'below' if self.below else 'at most'} {self.most}"
        )


COUNT = Range(1, 2**31 - 1)
COUNT_OR_NONE = Range(0, 2**31 - 1)
BYTES = Range(1, 2**63 - 1)
BYTES_OR_ALL = Range(0, 2**63 - 1)
SHARE = Range(0, 1)
WEIGHT = Range(0, 10**6, above=True)
"""Beyond a million a weight, or a rate, leaves float32 sooner or later."""

RANGES: Mapping[str, Range] = {
    "mix": WEIGHT,
    "test_prompts": COUNT,
    "validation_fraction": Range(0, 1, below=True),
    "data_limit": BYTES_OR_ALL,
    "steps": COUNT,
    "batch": COUNT,
    "accumulate": COUNT,
    "windows": COUNT,
    "window_shares": Range(0, 10**6),
    "starts": SHARE,
    "prophet_weight": WEIGHT,
    "prophet_curriculum": SHARE,
    "muon_rate": WEIGHT,
    "muon_momentum": Range(0, 1, below=True),
    "adam_rate": WEIGHT,
    "weight_decay": Range(0, 10**6),
    "warmup": COUNT_OR_NONE,
    "decay_fraction": SHARE,
    "clip": Range(0, 10**30),
    "seed": Range(0, 2**32 - 1),
    "evaluate_every": COUNT,
    "save_every": COUNT,
    "demonstrate_every": COUNT_OR_NONE,
    "validation_bytes": BYTES,
    "heads": COUNT,
    "eos_byte": Range(-1, 255),
}
"""Of all numbers but the sizes, which the checkpoint reader judges; it is not asked about heads
before they have divided the width."""


def require_in_range(values: Mapping[str, Any]) -> None:
    for name, allowed in RANGES.items():
        value = values[name]
        for each in value if isinstance(value, tuple) else (value,):
            if each not in allowed:
                raise ValueError(f"{flag(name)}: must be {allowed}, not {each}")


FLAGS = {
    "num_attention_heads": ("--heads",),
    "num_key_value_heads": ("--kv-heads",),
    "head_dim": ("--hidden-size", "--heads"),
    "max_position_embeddings": ("--context",),
    "eos_token_id": ("--eos-byte",),
    "model_hidden_size": ("--hidden-size",),
    "kind": ("--prophet-kind",),
    **{
        name: (flag(name),)
        for name in ("hidden_size", "intermediate_size", "rope_theta", "leading_states")
    },
    "draft_length": ("--draft-length",),
}
"""Flags behind the fields of config.json and prophet_config.json."""


def require_readable(model: ModelConfig) -> None:
    """Refuses what reading the config.json of this model would refuse."""
    if model_config(hugging_face_fields(model, "bfloat16")) != model:
        raise ValueError("config.json would not read back as this model")


def require_prophet_readable(prophet: ProphetConfig) -> None:
    """Refuses what reading the prophet_config.json of this prophet would refuse."""
    if prophet_config(prophet_fields(prophet)) != prophet:
        raise ValueError("prophet_config.json would not read back as this prophet")


def naming_flags(error: ValueError, depth: str) -> ValueError:
    """What a checkpoint's reader says of a field, behind the flags that the field comes from."""
    flags = {**FLAGS, "num_hidden_layers": (depth,)}
    named = re.findall(r"\w+", str(error))
    chosen = dict.fromkeys(f for name in named for f in flags.get(name, ()))
    return ValueError(f"{', '.join(chosen)}: {error}" if chosen else str(error))
