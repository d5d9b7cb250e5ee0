"""What is minimised: the model's cross-entropy and the prophet's distance to the model.

By default the prophet learns the model's whole distribution at each drafted place rather than the
one byte of the data, because it is the model that will judge its drafts.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.model import ByteLlama
from specdec.prophet import Prophet
from train.acceptance import LOSSES, agreement_on, coupled_acceptance

BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Losses:
    """`total` is minimised; the others are for people.

    Bits are per byte of the data.  `acceptance` [γ] is the probability at each drafted place that
    model and prophet choose the same byte at temperature 1, given that all before agreed.
    """

    total: Tensor
    model_bits: Tensor
    prophet_bits: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Aim:
    """How the two losses are made and weighed; names are those of `TrainConfig`."""

    gamma: int
    detach: bool = True
    frozen: bool = False
    prophet_weight: float = 1.0
    prophet_loss: str = "kl"
    prophet_reach: bool = False


def random_starts(seed: int, step: int, length: int, gamma: int, share: float) -> Tensor:
    """Sorted offsets in a window, a share of those that leave room for γ targets; at least one."""
    room = length - gamma
    generator = torch.Generator().manual_seed((seed << 32) ^ step)
    count = max(1, round(room * share))
    return torch.randperm(room, generator=generator)[:count].sort().values


def objective(
    model: ByteLlama, prophet: Prophet, tokens: Tensor, starts: Tensor, aim: Aim
) -> Losses:
    """Losses of tokens [B, T]; the prophet is trained at `starts` [M], γ targets each.

    Without starts the model is trained alone.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not aim.frozen):
        hidden = model(tokens)
        scores = model.logits(hidden[:, :-1])
    model_loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
    if not len(starts):
        none = model_loss.detach().new_zeros(aim.gamma)
        return Losses(model_loss, model_loss.detach() * BITS, none.mean(), none)
    drafts = prophet.at_starts(hidden.detach() if aim.detach else hidden, tokens, starts, aim.gamma)
    places = starts[:, None] + torch.arange(aim.gamma, device=tokens.device)
    log_p = scores.detach()[:, places].log_softmax(-1)
    log_q = drafts.log_softmax(-1)
    byte = tokens[:, places + 1]
    bits = -log_q.gather(-1, byte[..., None])[..., 0]
    if aim.prophet_loss == "cross_entropy":
        by_place = bits
    else:
        by_place = LOSSES[aim.prophet_loss](log_p, log_q)
    if aim.prophet_reach:
        weight = _reached(log_p, log_q, byte)
        prophet_loss = (weight * by_place).sum() / weight.sum()
    else:
        prophet_loss = by_place.mean()
    with torch.no_grad():
        acceptance = coupled_acceptance(log_p, log_q).mean((0, 1))
    weighed = aim.prophet_weight * prophet_loss
    return Losses(
        total=weighed if aim.frozen else model_loss + weighed,
        model_bits=model_loss.detach() * BITS,
        prophet_bits=bits.detach().mean() * BITS,
        acceptance=acceptance,
    )


@torch.no_grad()
def _reached(log_p: Tensor, log_q: Tensor, byte: Tensor) -> Tensor:
    """Probability [B, M, γ] that a round gets as far as each place: all before it accepted."""
    agreed = agreement_on(log_p, log_q, byte)[..., :-1].cumprod(-1)
    return F.pad(agreed, (1, 0), value=1.0)
