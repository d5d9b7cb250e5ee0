"""Checkpoint directories: written whole, read with every field and tensor checked.

    config.json, generation_config.json        `specdec.hf_config`
    model.safetensors                          or shards, where others wrote them
    model.safetensors.index.json               names the model's files and tensors alone
    tokenizer.json, tokenizer_config.json      `specdec.tokenizer_files`; written, never read
    prophet_config.json, prophet.safetensors   `specdec.prophet_config`; only with a prophet

Knows the layout of the directory and Hugging Face's tensor names.  Other programs read every
*.safetensors that lies there unless an index names some: it keeps them from the prophet.

Each file is replaced at once, the directory is not: a save cut short over an older checkpoint
leaves files of both.  Does not know the model card or the training record that a trainer lays
next to these files.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from specdec.checkpoint_file import CheckpointError, naming, read_object, write_atomically
from specdec.config import ModelConfig, ProphetConfig
from specdec.hf_config import end_byte, hugging_face_fields, model_config, special_tokens
from specdec.kinds import build_prophet
from specdec.layers import Block, rotary_table, wide
from specdec.model import ByteLlama
from specdec.prophet import Prophet
from specdec.prophet_config import prophet_config, prophet_fields
from specdec.tensor_file import TensorFile, tensor_bytes
from specdec.tokenizer_files import tokenizer_config, tokenizer_json

__all__ = [
    "CheckpointError",
    "load_model",
    "load_prophet",
    "read_model_config",
    "save_checkpoint",
    "write_atomically",
]

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PROPHET_CONFIG = "prophet_config.json"
PROPHET_WEIGHTS = "prophet.safetensors"

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

Network = TypeVar("Network", ByteLlama, Prophet)


def save_checkpoint(
    directory: Path,
    model: ByteLlama,
    prophet: Prophet | None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes the directory's files; without a prophet those of an older one are removed.

    All is checked before anything is written.  config.json comes last: a new directory that has
    it is complete.
    """
    contents = _model_files(directory, model, dtype)
    if prophet is not None:
        contents |= _prophet_files(directory, prophet, model.config, dtype)
    contents[CONFIG] = contents.pop(CONFIG)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if prophet is None:
            (directory / PROPHET_CONFIG).unlink(missing_ok=True)
            (directory / PROPHET_WEIGHTS).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error}") from error
    for name, data in contents.items():
        write_atomically(directory / name, data)


def save_prophet(directory: Path, prophet: Prophet, dtype: torch.dtype = torch.bfloat16) -> None:
    """Puts a prophet beside the model of a checkpoint, which it must fit.

    A model that lies in one file gets its index, which whoever wrote it had no need of.
    """
    contents = _prophet_files(directory, prophet, read_model_config(directory), dtype)
    if (directory / WEIGHTS).is_file():
        with TensorFile(directory / WEIGHTS) as file:
            sizes = {name: stored.read().nbytes for name, stored in file.tensors.items()}
        contents = {WEIGHTS_INDEX: _index(sizes), **contents}
    for name, data in contents.items():
        write_atomically(directory / name, data)


def read_model_config(directory: Path) -> ModelConfig:
    """What config.json describes.

    Where config.json has no `eos_token_id`, not even null, that of generation_config.json counts;
    where neither has one, no byte ends a text.  (transformers would end it at byte 2, its default
    for Llama.)
    """
    path = directory / CONFIG
    described = read_object(path)
    with naming(path):
        config = model_config(described)
    path = directory / GENERATION_CONFIG
    if "eos_token_id" not in described and path.is_file():
        with naming(path):
            config = replace(config, eos_token_id=end_byte(read_object(path)))
    return config


def load_model(directory: Path, dtype: torch.dtype = torch.float32) -> ByteLlama:
    """The model for inference: eval mode, weights in `dtype` on the CPU, no gradients.

    Its rotary tables stay in at least float32, as in a model that is built.
    """
    config = read_model_config(directory)
    with TensorFile(directory / WEIGHTS) as file:
        _require_depth(file, config.num_hidden_layers)
        model = _shell(lambda: ByteLlama(config), dtype)
        extra_head = config.tie_word_embeddings and HEAD in file.tensors
        file.require(hugging_face_tensors(model), (HEAD,) if extra_head else ())
        if extra_head:
            head, embedding = file.tensors[HEAD], file.tensors[EMBEDDING]
            if not torch.equal(head.read().double(), embedding.read().double()):
                raise CheckpointError(
                    f"{head.path}: tensor {HEAD} differs from {EMBEDDING}, "
                    "but tie_word_embeddings says that they are one"
                )
        _materialize(model, dtype)
        file.copy_into(hugging_face_tensors(model))
    return model


def load_prophet(
    directory: Path, dtype: torch.dtype = torch.float32, *, model_directory: Path | None = None
) -> Prophet | None:
    """The prophet for inference, as `load_model`; None where no prophet_config.json lies.

    It must fit the model of the same directory, or of `model_directory`.
    """
    path = directory / PROPHET_CONFIG
    if not path.is_file():
        return None
    with naming(path):
        config = prophet_config(read_object(path))
        model = read_model_config(model_directory or directory)
        _require_fit(config, model)
    with TensorFile(directory / PROPHET_WEIGHTS) as file:
        _require_depth(file, config.num_hidden_layers)
        prophet = _shell(lambda: build_prophet(config, model.max_position_embeddings), dtype)
        file.require(prophet.state_dict())
        _materialize(prophet, dtype)
        file.copy_into(prophet.state_dict())
    return prophet


def hugging_face_tensors(model: ByteLlama) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, as views: what is copied into one is loaded.

    Rows of the fused qkv are query, key, then value heads, so each is a slice.
    """
    named = {
        EMBEDDING: model.embedding.weight.detach(),
        "model.norm.weight": model.stack.norm.weight.detach(),
    }
    for index, block in enumerate(cast(Iterable[Block], model.stack.blocks)):
        for name, tensor in _block_tensors(block).items():
            named[f"model.layers.{index}.{name}.weight"] = tensor
    if not model.config.tie_word_embeddings:
        named[HEAD] = model.head.weight.detach()
    return named


def _block_tensors(block: Block) -> dict[str, Tensor]:
    config = block.config
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    query, key, value = block.qkv.weight.detach().split((queries, keys, keys))
    gate, up = block.gate_up.weight.detach().chunk(2)
    return {
        "input_layernorm": block.attention_norm.weight.detach(),
        "self_attn.q_proj": query,
        "self_attn.k_proj": key,
        "self_attn.v_proj": value,
        "self_attn.o_proj": block.output.weight.detach(),
        "post_attention_layernorm": block.feed_forward_norm.weight.detach(),
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": block.down.weight.detach(),
    }


def _model_files(directory: Path, model: ByteLlama, dtype: torch.dtype) -> dict[str, bytes]:
    described = hugging_face_fields(model.config, str(dtype).removeprefix("torch."))
    with naming(directory / CONFIG):
        if model_config(described) != model.config:
            raise ValueError("would not read back as the model's configuration")
    tensors = hugging_face_tensors(model)
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in tensors.items()}
    end, context = model.config.eos_token_id, model.config.max_position_embeddings
    return {
        CONFIG: _json(described),
        GENERATION_CONFIG: _json(special_tokens(model.config)),
        "tokenizer.json": _json(tokenizer_json(end)),
        "tokenizer_config.json": _json(tokenizer_config(end, context)),
        WEIGHTS: tensor_bytes(directory / WEIGHTS, tensors, dtype),
        WEIGHTS_INDEX: _index(sizes),
    }


def _index(sizes: Mapping[str, int]) -> bytes:
    """Says that the tensors, of these sizes in bytes, are all in one file."""
    places = dict.fromkeys(sorted(sizes), WEIGHTS)
    return _json({"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})


def _prophet_files(
    directory: Path, prophet: Prophet, model: ModelConfig, dtype: torch.dtype
) -> dict[str, bytes]:
    described = prophet_fields(prophet.config)
    with naming(directory / PROPHET_CONFIG):
        _require_fit(prophet_config(described), model)
    return {
        PROPHET_WEIGHTS: tensor_bytes(directory / PROPHET_WEIGHTS, prophet.state_dict(), dtype),
        PROPHET_CONFIG: _json(described),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _require_fit(prophet: ProphetConfig, model: ModelConfig) -> None:
    if prophet.model_hidden_size != model.hidden_size:
        raise ValueError(
            f"model_hidden_size is {prophet.model_hidden_size}, "
            f"but the model's hidden_size is {model.hidden_size}"
        )


def _require_depth(file: TensorFile, depth: int) -> None:
    # before a module of that depth is built
    if depth > len(file.tensors):
        raise CheckpointError(
            f"{file.path}: {len(file.tensors)} tensors are too few for num_hidden_layers {depth}"
        )


def _shell(build: Callable[[], Network], dtype: torch.dtype) -> Network:
    """The module without memory: shapes to check, and no random numbers drawn for its weights."""
    with torch.device("meta"):
        return build().to(dtype).requires_grad_(False).eval()


def _materialize(network: Network, dtype: torch.dtype) -> None:
    """Gives a shell memory for its weights, and its rotary tables."""
    stack = network.stack
    positions = stack.cos.shape[0]
    network.to_empty(device="cpu")
    block = network.config.block
    stack.cos, stack.sin = rotary_table(positions, block.head_dim, block.rope_theta, wide(dtype))
