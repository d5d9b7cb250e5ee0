"""How likely two distributions choose the same byte, and losses that raise it.

p is the model's distribution over 256 bytes, q the prophet's, both given as log-probabilities
[..., 256]; p is not differentiated.  KL, total variation and LK (their adaptive mixture, arXiv
2602.23881) are common stand-ins; under shared Gumbel noise the probability itself is known
(arXiv 2408.07978):

    Σ_i 1 / Σ_j max(p_j / p_i, q_j / q_i)
"""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(log p, log q), both [..., 256] → a loss for each place [...]."""


def coupled_acceptance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Probability [...] that argmax(log p + g) = argmax(log q + g) for one Gumbel vector g.

    max(p_j/p_i, q_j/q_i) is the first where p_j/q_j > p_i/q_i, else the second.  With the bytes
    sorted by that ratio both sums are running sums: V·log V instead of V².
    """
    ratio = (log_p - log_q).detach()
    order = ratio.argsort(-1)
    p, q = (x.gather(-1, order).exp() for x in (log_p, log_q))
    above = p.flip(-1).cumsum(-1).flip(-1) - p
    below = q.cumsum(-1)
    tiny = torch.finfo(p.dtype).tiny
    # 1 / (above/p + below/q), without dividing by a probability that is 0
    return (p * q / (above * q + below * p).clamp_min(tiny)).sum(-1)


def agreement_on(log_p: Tensor, log_q: Tensor, byte: Tensor) -> Tensor:
    """Probability [...] that the prophet chooses `byte` [...] too where the model chose it."""
    index = byte[..., None]
    scale = log_p.gather(-1, index) - log_q.gather(-1, index)
    return 1 / torch.maximum(log_p, log_q + scale).exp().sum(-1)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) in nats."""
    p = log_p.exp()
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)


def lk(log_p: Tensor, log_q: Tensor) -> Tensor:
    """λ·KL + (1-λ)·TV with λ = exp(-3·(1-TV)): KL while they are far apart, TV once close."""
    variation = total_variation(log_p, log_q)
    weight = torch.exp(-3 * (1 - variation.detach()))
    return weight * kl(log_p, log_q) + (1 - weight) * variation


def coupled(log_p: Tensor, log_q: Tensor) -> Tensor:
    return -coupled_acceptance(log_p, log_q).clamp_min(1e-6).log()


LOSSES: dict[str, Loss] = {"kl": kl, "tv": total_variation, "lk": lk, "coupled": coupled}
