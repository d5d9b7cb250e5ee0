"""Bits per byte of given bytes as a decoder sees them, each with a long context before it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.build import decoding
from specdec.decoder import LONGEST_CHUNK, Decoder
from train.source import Bytes


@torch.no_grad()
def bits_per_byte(decoder: Decoder[Any], content: Bytes, most: int) -> float:
    """Mean over the first `most` bytes but the first one; uses every slot, which must be free.

    Windows as long as the context overlap by half: every byte but those of the first half window is
    scored after at least half a context.
    """
    size = min(most, len(content))
    context = min(decoder.context, size)
    stride = max(1, context // 2)
    starts = [*range(0, size - context, stride), size - context]
    total, scored = 0.0, 1
    for begin in range(0, len(starts), decoder.slots):
        group = starts[begin : begin + decoder.slots]
        rows = [torch.from_numpy(content[s : s + context].copy()).long() for s in group]
        for start, row in zip(group, _losses(decoder, torch.stack(rows)), strict=True):
            # bytes up to `scored` counted in the window before
            total += float(row[scored - start - 1 :].sum())
            scored = start + context
    return total / (size - 1) / math.log(2)


def _losses(decoder: Decoder[Any], tokens: Tensor) -> Tensor:
    """Nats [R, C - 1] of the bytes behind the first of tokens [R, C], a slot each."""
    rows, context = tokens.shape
    slot, losses = torch.arange(rows)[:, None], []
    with decoding(decoder):
        for start in range(0, context, LONGEST_CHUNK):
            chunk = tokens[:, start : start + LONGEST_CHUNK]
            length = chunk.shape[1]
            place = (start + torch.arange(length)).expand(rows, length)
            at = (
                part.flatten().to(decoder.device)
                for part in (slot.expand(rows, length), place, place)
            )
            _, logits = decoder.model.forward(
                chunk.flatten().to(decoder.device), *at, ((rows, length),)
            )
            following = tokens[:, start + 1 : start + length + 1].to(decoder.device)
            log_p = logits.view(rows, length, -1)[:, : following.shape[1]].log_softmax(-1)
            losses.append(F.nll_loss(log_p.transpose(1, 2), following, reduction="none"))
    return torch.cat(losses, 1)
