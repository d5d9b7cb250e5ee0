"""Rows that decode together, and the rule that decides their bytes, bound to them.

For drafting and for judging alike; what the rule is says `specdec.sampling`.

c rows of a group, γ drafts, W = γ + 1 rows verified for each.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.config import VOCAB_SIZE
from specdec.drafter import Following
from specdec.sampling import Features, SamplingRows, choose
from specdec.state import SlotState


@dataclass(frozen=True)
class Group:
    """Rows that decode with the same number of drafts.

    slots [c]; `width` is W.  Of so many `alternatives` the log-probabilities are given, of none
    below 0.  The first `watched` rows may draft, now or later: the drafter is told of them.
    """

    slots: Tensor
    width: int
    features: Features
    alternatives: int = -1
    watched: int = 0


class TorchRule:
    """The rule on torch's operations, for any device."""

    def __init__(self, state: SlotState, group: Group) -> None:
        self.state, self.group = state, group
        self.rows: SamplingRows = state.sampling.take(group.slots)
        self.eos = self.rows.eos
        self.length = state.length[group.slots]
        self.counts = state.counts[group.slots]

    def noise(self, slots: Tensor, position: Tensor) -> Tensor | None:
        return self.state.noise_at(slots, position) if self.group.features.sampled else None

    def pick(self, step: int, logits: Tensor, following: Following | None = None) -> Tensor:
        if following is not None:
            logits = following.added(logits)
        position = self.length + 1 + step
        noise = self.noise(self.group.slots, position)
        picked = choose(logits, self.rows, self.counts, position, noise, self.group.features)
        if self.group.features.adjusted:
            self.counts = self.counts + marked(picked)
        return picked

    def judge(self, logits: Tensor, drafts: Tensor) -> Tensor:
        state, group = self.state, self.group
        count, width = logits.shape[:2]
        each = group.slots.repeat_interleave(width)
        position = (self.length[:, None] + 1 + torch.arange(width, device=logits.device)).flatten()
        counts = state.counts[group.slots]
        if group.features.adjusted:
            before = F.pad(marked(drafts).cumsum(1), (0, 0, 1, 0))
            counts = (counts[:, None] + before).flatten(0, 1)
        else:
            counts = counts[:0]
        rows = state.sampling.take(each)
        chosen = choose(
            logits.flatten(0, 1), rows, counts, position, self.noise(each, position), group.features
        )
        return chosen.view(count, width)


def marked(tokens: Tensor) -> Tensor:
    """1 at each byte's place [..., 256]; `F.one_hot` looks at the bytes on the host first."""
    return (tokens[..., None] == torch.arange(VOCAB_SIZE, device=tokens.device)).long()
