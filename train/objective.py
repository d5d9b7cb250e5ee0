"""What is minimised: the model's cross-entropy and the prophet's distance to the model.

The prophet learns the model's whole distribution at each drafted place rather than the one byte
of the data, because it is the model that will judge its drafts.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.model import ByteLlama
from specdec.prophet import AutoregressiveProphet

BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Losses:
    """total is minimised; the others are bits per byte on the data, for people."""

    total: Tensor
    model_bits: Tensor
    prophet_bits: Tensor
    agreement: Tensor
    """Mean over drafted places of 1 - total variation(model, prophet), by draft: [γ]."""


def random_starts(seed: int, step: int, length: int, gamma: int, share: float) -> Tensor:
    """Sorted offsets in a window, a share of those that leave room for γ targets; at least one."""
    room = length - gamma
    generator = torch.Generator().manual_seed((seed << 32) ^ step)
    count = max(1, round(room * share))
    return torch.randperm(room, generator=generator)[:count].sort().values


def objective(
    model: ByteLlama,
    prophet: AutoregressiveProphet,
    tokens: Tensor,
    starts: Tensor,
    gamma: int,
    *,
    detach: bool,
    prophet_weight: float,
) -> Losses:
    """Losses of tokens [B, T]; the prophet is trained at `starts`, γ targets each."""
    hidden = model(tokens)
    scores = model.logits(hidden[:, :-1])
    model_loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
    drafts = prophet.at_starts(hidden.detach() if detach else hidden, tokens, starts, gamma)
    places = starts[:, None] + torch.arange(gamma, device=tokens.device)
    judged = scores.detach()[:, places].softmax(-1)
    log_drafts = drafts.log_softmax(-1)
    prophet_loss = -(judged * log_drafts).sum(-1).mean()
    with torch.no_grad():
        targets = tokens[:, places + 1]
        hit = log_drafts.gather(-1, targets[..., None])
        agreement = 1 - 0.5 * (judged - log_drafts.exp()).abs().sum(-1).mean((0, 1))
    return Losses(
        total=model_loss + prophet_weight * prophet_loss,
        model_bits=model_loss.detach() * BITS,
        prophet_bits=-hit.mean() * BITS,
        agreement=agreement,
    )
