"""Whether a row's bits depend on what shares its pass: measured, on this device and type.

The byte rule gives the same bytes on every decode path only where a row's logits are the same
bits in any company.  Libraries choose kernels by shape, so this is asked of the machine, with the
loaded weights, before serving.  A clean result is a measurement over many shapes, not a proof.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.attention import LONGEST_SPAN, Groups
from specdec.build import Model
from specdec.config import VOCAB_SIZE

_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17)
"""Spans as decoding has them: alone, and with up to 16 drafts."""

_MOST_ROWS = 512
"""Rows of company in one pass: the check takes seconds for any number of slots."""


@dataclass(frozen=True)
class Invariance:
    """Of `places` compared, `differing` had other bits; `largest` is the widest logit gap.
    `finite`: no logit has overflowed."""

    places: int
    differing: int
    largest: float
    finite: bool

    @property
    def exact(self) -> bool:
        return self.differing == 0


def measure_invariance(model: Model, seed: int = 0) -> Invariance:
    """Runs one text twice through the model's own cache, in long chunks and in short spans among
    other slots' rows of changing number and width, and compares hidden states and logits.

    Overwrites the cache of every slot: for use before serving.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(model.context, 640)
    text = torch.randint(0, VOCAB_SIZE, (length,), generator=generator).to(model.device)
    long = _run(model, text, _chunks(length, [LONGEST_SPAN]), None)
    short = _run(model, text, _short_spans(length), generator)
    gaps = [(a != b).any(-1) for a, b in zip(long, short, strict=True)]
    return Invariance(
        places=length,
        differing=int((gaps[0] | gaps[1]).sum()),
        largest=float((long[1] - short[1]).abs().max()),
        finite=bool(long[1].isfinite().all() and short[1].isfinite().all()),
    )


def _chunks(length: int, sizes: list[int]) -> Iterator[int]:
    done, index = 0, 0
    while done < length:
        size = min(sizes[index % len(sizes)], length - done)
        yield size
        done, index = done + size, index + 1


def _short_spans(length: int) -> Iterator[int]:
    """Every width at the start, around a tile's border and at the end; long chunks between."""
    done = 0
    while done < length:
        near_border = done % 512 < 96 or done % 512 > 416 or length - done < 96
        for size in _WIDTHS if near_border else (64,):
            size = min(size, length - done)
            if size:
                yield size
                done += size


def _run(
    model: Model, text: Tensor, sizes: Iterator[int], company: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of the text in slot 0, alone or with rows of the other slots."""
    parts, begin = [], 0
    for turn, size in enumerate(sizes):
        place = torch.arange(begin, begin + size, device=model.device)
        rows = [(text[begin : begin + size], torch.zeros_like(place), place)]
        groups: list[tuple[int, int]] = [(1, size)]
        ahead = 0
        if company is not None and model.slots > 1:
            width = _WIDTHS[turn * 5 % len(_WIDTHS)]
            others = min(1 + turn * 3 % (model.slots - 1), _MOST_ROWS // width)
            start = min(turn * 7, model.context - width)
            slots = torch.arange(1, 1 + others, device=model.device).repeat_interleave(width)
            places = torch.arange(start, start + width, device=model.device).repeat(others)
            tokens = torch.randint(0, VOCAB_SIZE, (len(places),), generator=company)
            extra = (tokens.to(model.device), slots, places)
            # in front of the text in every other pass: its place among the rows varies too
            ahead = len(places) if turn % 2 else 0
            rows.insert(0 if ahead else 1, extra)
            groups.insert(0 if ahead else 1, (others, width))
        tokens, slots, places = (torch.cat(column) for column in zip(*rows, strict=True))
        shapes: Groups = tuple(groups)
        hidden, logits = model.forward(tokens, slots, places, places, shapes)
        parts.append((hidden[ahead : ahead + size], logits[ahead : ahead + size]))
        begin += size
    hidden, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    return hidden, logits
