"""Muon for the matrices inside blocks and AdamW for everything else, or Adam for all.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; embeddings, heads, norms and
learned vectors are not such matrices and keep AdamW (Loshchilov and Hutter 2019).
"""

from itertools import chain

import torch
from torch import nn

from train.config import TrainConfig


class Optimizers:
    """All optimizers of a run behind one step, with their rates scaled together."""

    def __init__(self, config: TrainConfig, *modules: nn.Module) -> None:
        named = list(chain.from_iterable(module.named_parameters() for module in modules))
        self.parameters = [p for _, p in named if p.requires_grad]
        self.parts: list[torch.optim.Optimizer]
        if config.optimizer == "adam":
            self.rates = [config.adam_rate]
            self.parts = [torch.optim.Adam(self.parameters, lr=config.adam_rate)]
            return
        matrices, rest = [], []
        for name, parameter in named:
            if parameter.requires_grad:
                inside = ".blocks." in name and parameter.ndim == 2
                (matrices if inside else rest).append(parameter)
        self.rates = [config.muon_rate, config.adam_rate]
        self.parts = [
            torch.optim.Muon(
                matrices,
                lr=config.muon_rate,
                weight_decay=config.weight_decay,
                momentum=0.95,
                nesterov=True,
            ),
            torch.optim.AdamW(rest, lr=config.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, share: float, clip: float) -> None:
        """Clips the joint gradient norm and steps at `share` of the rates."""
        nn.utils.clip_grad_norm_(self.parameters, clip)
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
