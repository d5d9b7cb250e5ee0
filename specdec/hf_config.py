"""Hugging Face's config.json ↔ `ModelConfig`, as plain dictionaries.

Knows which Llama configurations are served and refuses the others with a ValueError that opens
with the field's name.  A field that is missing means what transformers takes it for; null counts
as missing, as it does there.  Does not know files: `specdec.checkpoint` adds their names.
"""

import sys
from collections.abc import Mapping
from typing import Any

from specdec.config import VOCAB_SIZE, BlockConfig, ModelConfig

LARGEST_SIZE = 2**31 - 1

ACCEPTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], None),
    "vocab_size": (VOCAB_SIZE,),
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "tie_word_embeddings": (True, False, None),
    "partial_rotary_factor": (1.0, 1, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
"""All values that are served of the fields that are no sizes; None: may be null or missing."""

ROPE_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", None),
    "type": ("default", None),
    "partial_rotary_factor": (1.0, 1, None),
}
"""The same for what is inside `rope_parameters`, next to rope_theta."""


def integer(
    fields: Mapping[str, Any], name: str, default: int | None = None, least: int = 1
) -> int:
    """A whole number; neither 8.0 nor true is one."""
    value = fields.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"{name} is missing")
    if type(value) is not int or not least <= value <= LARGEST_SIZE:
        raise ValueError(f"{name} must be a whole number from {least} on, not {value!r}")
    return value


def number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A finite number above 0."""
    value = fields.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"{name} is missing")
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0, not {value!r}")
    return float(value)


def text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {value!r}")
    return value


def end_byte(fields: Mapping[str, Any]) -> int | None:
    """`eos_token_id`: null, a byte, or a list of one byte."""
    value = fields.get("eos_token_id")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < VOCAB_SIZE:
        raise ValueError(f"eos_token_id must be null or one byte, 0 to 255, not {value!r}")
    return value


def model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """What config.json describes, if all of it is served here."""
    _refuse_others(fields, ACCEPTED)
    return ModelConfig(
        block=_block_config(fields),
        num_hidden_layers=integer(fields, "num_hidden_layers"),
        max_position_embeddings=integer(fields, "max_position_embeddings"),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings")),
        eos_token_id=end_byte(fields),
    )


def _block_config(fields: Mapping[str, Any]) -> BlockConfig:
    hidden = integer(fields, "hidden_size")
    heads = integer(fields, "num_attention_heads")
    if hidden % heads:
        # transformers refuses it too, even where head_dim says otherwise
        raise ValueError(
            f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads}), "
            "which head_dim is derived from"
        )
    return BlockConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=integer(fields, "num_key_value_heads", heads),
        head_dim=integer(fields, "head_dim", hidden // heads),
        intermediate_size=integer(fields, "intermediate_size"),
        rope_theta=_rope_theta(fields),
        rms_norm_eps=number(fields, "rms_norm_eps", 1e-6),
    )


def _rope_theta(fields: Mapping[str, Any]) -> float:
    """From `rope_theta`, where transformers 4 writes it, or `rope_parameters`, where 5 does."""
    outside = number(fields, "rope_theta", 10000.0)
    parameters = fields.get("rope_parameters")
    if parameters is None:
        return outside
    if not isinstance(parameters, Mapping):
        raise ValueError(f"rope_parameters must be an object, not {parameters!r}")
    inside = _theta_inside(parameters, outside)
    if fields.get("rope_theta") is not None and inside != outside:
        raise ValueError(f"rope_theta is {outside!r}, but {inside!r} in rope_parameters")
    return inside


def _theta_inside(parameters: Mapping[str, Any], default: float) -> float:
    try:
        _refuse_others(parameters, ROPE_ACCEPTED)
        for name in parameters.keys() - ROPE_ACCEPTED.keys() - {"rope_theta"}:
            raise ValueError(f"{name} is not supported")
        return number(parameters, "rope_theta", default)
    except ValueError as error:
        raise ValueError(f"rope_parameters: {error}") from None


def _refuse_others(fields: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]) -> None:
    for name, values in accepted.items():
        value = fields.get(name)
        # by type too: true is equal to 1 in Python
        if not any(type(value) is type(other) and value == other for other in values):
            found = "is missing" if value is None else f"is {value!r}, which is not supported"
            raise ValueError(f"{name} {found}: it must be {_choices(values)}")


def _choices(values: tuple[Any, ...]) -> str:
    return " or ".join("null" if value is None else repr(value) for value in values)


def hugging_face_fields(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json for a model stored in `dtype`; no size is left to a reader's defaults."""
    block = config.block
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": block.hidden_size,
        "intermediate_size": block.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": block.num_attention_heads,
        "num_key_value_heads": block.num_key_value_heads,
        "head_dim": block.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": block.rms_norm_eps,
        "rope_theta": block.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": block.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **special_tokens(config),
    }


def special_tokens(config: ModelConfig) -> dict[str, int | None]:
    """Left out, they would default to the bytes 1 and 2, and byte 2 would end a text."""
    return {"bos_token_id": None, "eos_token_id": config.eos_token_id, "pad_token_id": None}
