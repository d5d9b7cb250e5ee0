"""Gumbel noise as a pure function of seed and position, the same bits on every device.

A counter-based generator (Philox 4×32, 10 rounds; Salmon et al. 2011): key = seed, counter =
(byte pair, position), so that any block can be computed anywhere, in any order, again.  Its
logarithms are made of operations that IEEE 754 rounds the same way everywhere, for libraries'
differ in their last bits.  Knows nothing of logits: adding the noise to log-probabilities and
taking the argmax samples exactly (Gumbel 1954; Maddison et al. 2014).

The same function is stated in `native/noise.h` and `specdec.triton_rule_kernels`.
"""

import math

import torch
from torch import Tensor

from specdec.config import VOCAB_SIZE

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_TERMS = 11
"""Of the series of artanh, which then is short of float64's last bit by less than itself."""


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

    From -3.6 to 36.8.  Uniforms are odd multiples of 2⁻⁵³, so one minus them is exact too.
    """
    seed, position = torch.broadcast_tensors(seed[..., None], position[..., None])
    pair = torch.arange(VOCAB_SIZE // 2, device=seed.device)
    words = philox(
        (pair, position & _LOW, position >> 32 & _LOW, torch.zeros_like(pair)),
        (seed & _LOW, seed >> 32 & _LOW),
    )
    high, low = words[..., 0::2], words[..., 1::2]
    rest = 1 - ((high << 20 | low >> 12).double() + 0.5) * 2.0**-52
    return -logarithm(-logarithm(rest.flatten(-2)))


def logarithm(x: Tensor) -> Tensor:
    """The natural logarithm of positive float64, to two units in the last place.

    The exponent's share and, for m from about √½ to √2, log m = 2 artanh((m - 1) / (m + 1)) by its
    series.
    """
    mantissa, exponent = torch.frexp(x)
    low = mantissa < 0.70703125  # about √½, in float32 too
    mantissa = torch.where(low, 2 * mantissa, mantissa)
    s = (mantissa - 1).div_(mantissa.add_(1))
    square = s * s
    series = torch.full_like(s, 2 / (2 * _TERMS - 1))
    for term in range(_TERMS - 2, 0, -1):
        series.mul_(square).add_(2 / (2 * term + 1))
    series.mul_(square).mul_(s).add_(s.mul_(2))
    return (exponent - low.int()).double().mul_(math.log(2)).add_(series)


def gumbel_ahead(seed: Tensor, start: Tensor, count: int) -> Tensor:
    """Noise [R, count, 256] for seeds [R] at positions from start [R] on."""
    return gumbel(seed[:, None], start[:, None] + torch.arange(count, device=start.device))
