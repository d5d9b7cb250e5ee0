"""Bits per byte of a model on given bytes, each scored with a long context before it."""

import math

import torch
import torch.nn.functional as F

from specdec.model import ByteLlama
from train.source import Bytes

AT_ONCE = 8


@torch.no_grad()
def bits_per_byte(model: ByteLlama, content: Bytes, most: int) -> float:
    """Mean over the first `most` bytes but the first one.

    Windows as long as the model's context overlap by half: every byte but those of the first half
    window is scored after at least half a context.
    """
    device = next(model.parameters()).device
    size = min(most, len(content))
    context = min(model.config.max_position_embeddings, size)
    stride = max(1, context // 2)
    starts = [*range(0, size - context, stride), size - context]
    total, scored = 0.0, 1
    for begin in range(0, len(starts), AT_ONCE):
        group = starts[begin : begin + AT_ONCE]
        rows = [torch.from_numpy(content[s : s + context].copy()).long() for s in group]
        tokens = torch.stack(rows).to(device)
        log_p = model.logits(model(tokens)[:, :-1]).log_softmax(-1).flatten(0, 1)
        loss = F.nll_loss(log_p, tokens[:, 1:].flatten(), reduction="none").view(len(group), -1)
        for start, row in zip(group, loss, strict=True):
            # bytes up to `scored` counted in the window before
            total += float(row[scored - start - 1 :].sum())
            scored = start + context
    return total / (size - 1) / math.log(2)
