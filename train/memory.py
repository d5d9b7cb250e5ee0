"""Whether a run can fit into the memory of its device at all, asked before anything is built.

A lower bound, of the matrices of the blocks, rotary tables and the hidden states of a batch: it
refuses what cannot work, not all that will not.
"""

import os

import torch

from specdec.config import BlockConfig, ModelConfig, ProphetConfig

NUMBER = 4
"""Bytes of a float32."""
COPIES = 3
"""A trained weight has a gradient and at least one moment."""


def require_memory_for_model(config: ModelConfig, device: torch.device) -> None:
    """ValueError, by flag, where a model is larger than all of the device's memory."""
    tables = 2 * config.max_position_embeddings * config.block.head_dim
    needed = COPIES * config.num_hidden_layers * _weights(config.block) + tables
    _require("--hidden-size, --depth, --intermediate-size, --context: the model", needed, device)


def require_memory_for_prophet(config: ProphetConfig, device: torch.device) -> None:
    needed = COPIES * config.num_hidden_layers * _weights(config.block)
    _require("--prophet-depth: the prophet", needed, device)


def require_memory_for_batch(places: int, config: ModelConfig, device: torch.device) -> None:
    """The same of the hidden states of so many bytes, one behind each block."""
    needed = places * config.hidden_size * config.num_hidden_layers
    _require("--batch, --windows: a batch", needed, device)


def _weights(block: BlockConfig) -> int:
    attention = (block.qkv_heads + block.num_attention_heads) * block.head_dim
    return block.hidden_size * (attention + 3 * block.intermediate_size)


def _require(what: str, numbers: int, device: torch.device) -> None:
    needed, memory = numbers * NUMBER, _memory(device)
    if needed > memory:
        raise ValueError(
            f"{what} needs at least {needed / 1e9:,.0f} GB to train, "
            f"more than all of the memory, {memory / 1e9:,.0f} GB"
        )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
