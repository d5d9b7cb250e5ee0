"""Gumbel noise as a pure function of seed and position.

A counter-based generator (Philox 4×32, 10 rounds; Salmon et al. 2011): key = seed, counter =
(byte pair, position), so that any block can be computed anywhere, in any order, again.  Knows
nothing of logits: adding the noise to log-probabilities and taking the argmax samples exactly
(Gumbel 1954; Maddison et al. 2014).
"""

import torch
from torch import Tensor

from specdec.config import VOCAB_SIZE

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Four 32-bit words [..., 4] for each counter, held in int64.

    The counter's and key's words are int64 tensors of values below 2³² that broadcast together.
    Products wrap modulo 2⁶⁴ in int64 as they do in uint64, so their halves are right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> 32 & _LOW) ^ c1 ^ k0,
            second & _LOW,
            (first >> 32 & _LOW) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return torch.stack((c0, c1, c2, c3), -1)


def gumbel(seed: Tensor, position: Tensor) -> Tensor:
    """Standard Gumbel noise [..., 256] in float64 for seeds [...] and positions [...] (int64).

    Large values come from exponentials near 0, which are made from uniforms near 0, where
    float64 is finest; the largest possible value is 37.4.
    """
    seed, position = torch.broadcast_tensors(seed[..., None], position[..., None])
    pair = torch.arange(VOCAB_SIZE // 2, device=seed.device)
    words = philox(
        (pair, position & _LOW, position >> 32 & _LOW, torch.zeros_like(pair)),
        (seed & _LOW, seed >> 32 & _LOW),
    )
    high, low = words[..., 0::2], words[..., 1::2]
    uniform = ((high << 21 | low >> 11).double() + 0.5) * 2.0**-53
    return gumbel_of(uniform.flatten(-2))


def gumbel_of(uniform: Tensor) -> Tensor:
    """The noise that uniforms stand for, written over them."""
    return uniform.neg_().log1p_().neg_().log_().neg_()


def gumbel_ahead(seed: Tensor, start: Tensor, count: int) -> Tensor:
    """Noise [R, count, 256] for seeds [R] at positions from start [R] on."""
    return gumbel(seed[:, None], start[:, None] + torch.arange(count, device=start.device))
