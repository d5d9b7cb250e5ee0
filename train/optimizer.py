"""Muon for the matrices inside blocks and cells, AdamW for the rest; or Adam or AdamW for all.

Embeddings, heads, norms and learned vectors are not such matrices and keep AdamW (Loshchilov and
Hutter 2019).
"""

import math
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn

from specdec.cell import Cell
from specdec.layers import Block
from train.config import TrainConfig
from train.muon import Muon

BETAS = (0.9, 0.95)
"""AdamW's; Adam keeps the usual ones."""


class Optimizers:
    """All optimizers of a run behind one step, with their rates scaled together."""

    def __init__(self, config: TrainConfig, dtype: torch.dtype, *modules: nn.Module) -> None:
        named = list(chain.from_iterable(module.named_parameters() for module in modules))
        named = [(name, p) for name, p in named if p.requires_grad]
        self.parameters = [p for _, p in named]
        inner = _inner(modules)
        matrices = [p for _, p in named if id(p) in inner]
        rest = [p for _, p in named if id(p) not in inner]
        rate, decay = config.adam_rate, config.weight_decay
        self.parts: list[torch.optim.Optimizer]
        if config.optimizer == "adam":
            self.rates = [rate]
            self.parts = [torch.optim.Adam(self.parameters, lr=rate)]
            return
        self.rates = [config.muon_rate if config.optimizer == "muon" else rate, rate]
        if config.optimizer == "muon":
            self.parts = [
                Muon(
                    matrices,
                    lr=config.muon_rate,
                    momentum=config.muon_momentum,
                    weight_decay=decay,
                    dtype=dtype,
                )
            ]
        else:
            self.parts = [torch.optim.AdamW(matrices, lr=rate, betas=BETAS, weight_decay=decay)]
        self.parts.append(torch.optim.AdamW(rest, lr=rate, betas=BETAS, weight_decay=0.0))

    def clip(self, most: float) -> float:
        """Clips the joint norm of the gradient, 0 for not at all; returns what it was."""
        return float(nn.utils.clip_grad_norm_(self.parameters, most or math.inf))

    def step(self, share: float) -> None:
        """Steps at `share` of the rates and drops the gradient."""
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def multiply_in(self, dtype: torch.dtype) -> None:
        for part in self.parts:
            if isinstance(part, Muon):
                part.dtype = dtype

    def state_dict(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _inner(modules: Iterable[nn.Module]) -> set[int]:
    """Of the weights of linears within blocks and cells; what meets bytes is not among them."""
    parts = chain.from_iterable(module.modules() for module in modules)
    layers = chain.from_iterable(p.modules() for p in parts if isinstance(p, Block | Cell))
    return {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear)}
