"""The plain, slow decoder: one row, one byte per pass over the whole text, no cache, no torch
in the rule.  It states what the bytes are; every faster path is compared with it.

Given the same scores it must choose the same bytes as `specdec.sampling`, which it shares no
code with but the noise.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from specdec.model import ByteLlama
from specdec.noise import gumbel
from specdec.sampling import SamplingParams

Scores = NDArray[np.float64]
ScoreNext = Callable[[bytes], Scores]
"""Logits [256] of the byte after a text."""


def scores_of(model: ByteLlama) -> ScoreNext:
    """Scores by a whole forward of the trainable module."""

    @torch.no_grad()
    def score(text: bytes) -> Scores:
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None]
        logits: Scores = model.logits(model(tokens)[0, -1]).double().numpy()
        return logits

    return score


def process_row(logits: Scores, output: bytes, params: SamplingParams, eos: int | None) -> Scores:
    """The rule up to the noise, for one row that has emitted `output`."""
    scores = [float(x) for x in logits]
    for byte in range(256):
        count = output.count(byte)
        if count:
            if scores[byte] > 0:
                scores[byte] /= params.repetition_penalty
            else:
                scores[byte] *= params.repetition_penalty
            scores[byte] -= params.presence_penalty
        scores[byte] -= params.frequency_penalty * count
    for byte, bias in params.logit_bias:
        scores[byte] += bias
    if eos is not None and len(output) < params.min_tokens:
        scores[eos] = -math.inf
    if params.temperature == 0:
        return np.array(scores)
    top = max(scores)
    scores = [(score - top) / params.temperature for score in scores]

    def keep(allowed: set[int]) -> None:
        for byte in range(256):
            if byte not in allowed:
                scores[byte] = -math.inf

    order = sorted(range(256), key=lambda byte: (-scores[byte], byte))
    if params.top_k:
        threshold = scores[order[params.top_k - 1]]
        keep({byte for byte in order if scores[byte] >= threshold})
    if params.top_p < 1:
        weights = [math.exp(scores[byte]) for byte in order]  # of ties for the top: 1, exactly
        enough = params.top_p * math.fsum(weights)
        kept: set[int] = set()
        mass = 0.0
        for byte, weight in zip(order, weights, strict=True):
            if kept and mass >= enough:
                break
            kept.add(byte)
            mass += weight
        keep(kept)
    if params.min_p:
        keep({byte for byte in order if scores[byte] >= math.log(params.min_p)})
    result: Scores = np.array(scores)
    result -= math.log(np.exp(result).sum())
    return result


def choose_row(
    logits: Scores, output: bytes, params: SamplingParams, seed: int, position: int, eos: int | None
) -> int:
    scores = process_row(logits, output, params, eos)
    if params.temperature > 0:
        scores = scores + gumbel(torch.tensor(seed), torch.tensor(position)).numpy()
    return int(scores.argmax())


def decode(
    score: ScoreNext,
    prompt: bytes,
    max_tokens: int,
    params: SamplingParams,
    seed: int,
    eos: int | None = None,
) -> bytes:
    """The output for a prompt of at least one byte, the end-of-document byte left out."""
    text, output = prompt, b""
    while len(output) < max_tokens:
        byte = choose_row(score(text), output, params, seed, len(text), eos)
        if byte == eos:
            break
        output += bytes([byte])
        text = prompt + output
    return output
