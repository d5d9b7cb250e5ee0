"""Small real models with weights large enough that bytes depend on the whole context."""

from typing import TypeVar

import torch

from specdec.build import Model, build_decoder
from specdec.config import BlockConfig, ModelConfig, ProphetConfig
from specdec.decoder import Decoder
from specdec.model import ByteLlama
from specdec.prophet import AutoregressiveProphet

CPU = torch.device("cpu")
Module = TypeVar("Module", bound=torch.nn.Module)


def tiny_model(
    seed: int = 0, *, depth: int = 2, kv_heads: int = 1, tied: bool = False, context: int = 160
) -> ByteLlama:
    torch.manual_seed(seed)
    block = BlockConfig(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=kv_heads,
        head_dim=16,
        intermediate_size=48,
    )
    model = ByteLlama(ModelConfig(block, depth, context, tie_word_embeddings=tied))
    return _enlarged(model).eval().requires_grad_(False)


def tiny_prophet(
    model: ByteLlama, seed: int = 1, *, leading: int = 2, width: int = 24
) -> AutoregressiveProphet:
    """As wide as asked, mostly other than the model."""
    torch.manual_seed(seed)
    block = BlockConfig(
        hidden_size=width,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        intermediate_size=40,
    )
    config = ProphetConfig(block, num_hidden_layers=2, model_hidden_size=32, leading_states=leading)
    prophet = _enlarged(AutoregressiveProphet(config))
    torch.nn.init.normal_(prophet.missing)
    return prophet.eval().requires_grad_(False)


def agreeing_prophet(model: ByteLlama, seed: int = 1) -> AutoregressiveProphet:
    """A random prophet nudged to agree with the model about half of the time.

    Its blocks add nothing and its head is the model's own on a byte's embedding, which is what a
    model with weak blocks mostly goes by too.
    """
    torch.manual_seed(seed)
    config = ProphetConfig(model.config.block, num_hidden_layers=1, model_hidden_size=32)
    prophet = AutoregressiveProphet(config)
    prophet.embedding.weight.data.copy_(model.embedding.weight)
    prophet.head.weight.data.copy_(model.head_weight)
    return prophet.eval().requires_grad_(False)


def tiny_decoder(
    dtype: torch.dtype,
    *,
    slots: int = 8,
    model: ByteLlama | None = None,
    prophet: AutoregressiveProphet | None = None,
) -> Decoder[Model]:
    model = model or tiny_model()
    prophet = prophet or agreeing_prophet(model)
    return build_decoder(model, prophet, slots=slots, device=CPU, dtype=dtype)


def _enlarged(module: Module) -> Module:
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(6)
    return module
