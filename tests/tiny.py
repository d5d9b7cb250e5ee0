"""Small real models with weights large enough that bytes depend on the whole context."""

from typing import TypeVar

import torch

from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.build import Model, build_decoder
from specdec.config import BlockConfig, ModelConfig, ProphetConfig
from specdec.decoder import Decoder
from specdec.model import ByteLlama
from specdec.parallel_prophet import ParallelProphet
from specdec.prophet import Prophet

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
    model: ByteLlama, seed: int = 1, *, leading: int = 2, width: int = 24, parallel: bool = False
) -> Prophet:
    """As wide as asked, mostly other than the model."""
    torch.manual_seed(seed)
    block = BlockConfig(
        hidden_size=width,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        intermediate_size=40,
    )
    prophet: AutoregressiveProphet | ParallelProphet
    if parallel:
        prophet = ParallelProphet(_parallel(block), model.config.max_position_embeddings)
    else:
        prophet = AutoregressiveProphet(
            ProphetConfig(block, num_hidden_layers=2, model_hidden_size=32, leading_states=leading)
        )
    torch.nn.init.normal_(prophet.missing)
    return _enlarged(prophet).eval().requires_grad_(False)


def agreeing_prophet(model: ByteLlama, seed: int = 1, *, parallel: bool = False) -> Prophet:
    """A random prophet nudged to agree with the model about half of the time.

    It goes by the model's own head on a byte's embedding, which is what a model with weak blocks
    mostly goes by too: the autoregressive one's blocks add nothing, the parallel one's table of
    what follows a byte says so.
    """
    torch.manual_seed(seed)
    block = model.config.block
    if parallel:
        prophet = ParallelProphet(_parallel(block), model.config.max_position_embeddings)
        embedded = torch.nn.functional.rms_norm(model.embedding.weight, (32,))
        prophet.transition.weight.data.copy_(embedded @ model.head_weight.T)
        return prophet.eval().requires_grad_(False)
    config = ProphetConfig(block, num_hidden_layers=1, model_hidden_size=32)
    other = AutoregressiveProphet(config)
    other.embedding.weight.data.copy_(model.embedding.weight)
    other.head.weight.data.copy_(model.head_weight)
    return other.eval().requires_grad_(False)


def _parallel(block: BlockConfig) -> ProphetConfig:
    return ProphetConfig(
        block, num_hidden_layers=1, model_hidden_size=32, kind="parallel", leading_states=1
    )


def tiny_decoder(
    dtype: torch.dtype,
    *,
    slots: int = 8,
    model: ByteLlama | None = None,
    prophet: Prophet | None = None,
) -> Decoder[Model]:
    model = model or tiny_model()
    prophet = prophet or agreeing_prophet(model)
    return build_decoder(model, prophet, slots=slots, device=CPU, dtype=dtype)


def _enlarged(module: Module) -> Module:
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(6)
    return module
