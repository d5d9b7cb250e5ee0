"""Muon for the matrices inside blocks, AdamW for everything else.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; embeddings, heads, norms and
learned vectors are not such matrices and keep AdamW (Loshchilov and Hutter 2019).
"""

from itertools import chain

import torch
from torch import nn

from train.config import TrainConfig


class Optimizers:
    """Both optimizers behind one step, with their rates scaled together."""

    def __init__(self, config: TrainConfig, *modules: nn.Module) -> None:
        named = list(chain.from_iterable(module.named_parameters() for module in modules))
        matrices = [p for name, p in named if ".blocks." in name and p.ndim == 2]
        rest = [p for name, p in named if not (".blocks." in name and p.ndim == 2)]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                lr=config.muon_rate,
                weight_decay=config.weight_decay,
                momentum=0.95,
                nesterov=True,
            ),
            torch.optim.AdamW(rest, lr=config.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [config.muon_rate, config.adam_rate]
        self.parameters = [p for _, p in named]

    def step(self, share: float, clip: float) -> float:
        """Clips the joint gradient norm, steps at `share` of the rates; returns the norm."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, clip))
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
