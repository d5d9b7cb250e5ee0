"""The decoding half of a round with shapes that are fixed beforehand: what a CUDA graph captures.

A plain function over tensors that stay where they are: draft, one pass, accept, advance and the
result in one tensor.  What differs from round to round is data on the device (which slots, how far
each drafts, where each stands), so the same operations run every time, on any device, and nothing
is read on the host inside.  Prompts are consumed elsewhere (`specdec.graph_round`).

Rows of any draft length share a pass whose width is the widest one's: a graph for each combination
of lengths cannot be had.  A row that drafts less has its surplus drafts ignored and pays for their
place in the pass, which on a GPU, where a pass over a few rows waits for weights and launches, is
nearly nothing; a round in which nobody drafts has the width of 1, the plain path.

B rows of a bucket, γ drafts of the widest, W = γ + 1.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec.config import LONGEST_DRAFT, VOCAB_SIZE
from specdec.drafter import Drafter, Following, Picker
from specdec.noise import gumbel
from specdec.round import SlotModel
from specdec.rule import Group, TorchRule, marked
from specdec.sampling import Features
from specdec.state import SlotState
from specdec.torch_round import accept

IDLE = -1
"""How many drafts a row has that fills up a bucket: it emits nothing."""


@dataclass(frozen=True)
class Shape:
    """What is fixed of a round: rows, drafts of the widest, whether the drafter is told."""

    rows: int
    gamma: int
    observes: bool

    @property
    def width(self) -> int:
        return self.gamma + 1


class Inputs:
    """What a round is told, int64 [3, B] on the device and its twins on the host.

    Rows that fill up the bucket have the scratch slot, `IDLE` drafts and are not watched.
    """

    def __init__(self, rows: int, scratch: int, device: torch.device) -> None:
        self.scratch = scratch
        # a copy from pinned memory does not wait; the result of the round before last is awaited
        # before the next, and so long a twin stays as it is
        pin = device.type == "cuda"
        self._host, self._other = (
            torch.empty(3, rows, dtype=torch.int64, pin_memory=pin) for _ in range(2)
        )
        self.tensor = torch.empty(3, rows, dtype=torch.int64, device=device)
        self.ahead = torch.arange(LONGEST_DRAFT + 1, device=device)
        """Of each place of a row, how far it is from the first."""
        self._sent: tuple[list[int], list[int], list[bool]] | None = None
        self.send([], [], [])

    def send(self, slots: list[int], drafts: list[int], watched: list[bool]) -> None:
        if (slots, drafts, watched) == self._sent:  # decoding goes on as it did
            return
        count = len(slots)
        self._host, self._other = self._other, self._host
        numbers = self._host.numpy()
        for row, idle in enumerate((self.scratch, IDLE, 0)):
            numbers[row, count:] = idle
            numbers[row, :count] = (slots, drafts, watched)[row]
        self.tensor.copy_(self._host, non_blocking=True)
        self._sent = list(slots), list(drafts), list(watched)

    @property
    def slots(self) -> Tensor:
        return self.tensor[0]

    @property
    def drafts(self) -> Tensor:
        return self.tensor[1]

    @property
    def watched(self) -> Tensor:
        return self.tensor[2]


class StaticRule(Picker, Protocol):
    """The byte rule and what follows from it, for the rows of `Inputs`."""

    @property
    def length(self) -> Tensor:
        """[B], the rows' lengths as the round begins."""

    @property
    def last(self) -> Tensor:
        """[B], their last bytes."""

    @property
    def heard(self) -> tuple[Tensor, Tensor]:
        """[B], slots and lengths as the drafter hears of them: rows of which it is not told are in
        the scratch slot, at no place of theirs."""

    def judge(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Choices [B, W] for logits [B, W, 256] after tokens [B, W]: last byte, then drafts."""

    def settle(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Accepts drafts and advances the state: a `result` [B, W + 3] (see `Decoded`), and how
        many of the places [B] are committed, at least one for idle rows too."""


class MakeRule(Protocol):
    def __call__(self, state: SlotState, inputs: Inputs, width: int) -> StaticRule: ...


@dataclass(frozen=True)
class Decoded:
    """What a round leaves: result [B, W + 3], int64, of each row W choices, how many of them it
    emits, how many drafts were accepted, whether it ended; logits [B, W, 256] and the choices."""

    result: Tensor
    logits: Tensor
    chosen: Tensor


@torch.no_grad()
def decode_rows(
    model: SlotModel,
    drafter: Drafter | None,
    state: SlotState,
    inputs: Inputs,
    shape: Shape,
    make_rule: MakeRule,
) -> Decoded:
    """One round of all rows; changes the state, the model's cache and what the drafter keeps."""
    slots, width = inputs.slots, shape.width
    rule = make_rule(state, inputs, width)
    length, last = rule.length, rule.last
    tokens = last[:, None]
    if shape.gamma:
        assert drafter is not None
        assert shape.observes
        drafts = drafter.draft(rule.heard[0], last, rule.heard[1], shape.gamma, rule)
        tokens = torch.cat((tokens, drafts), 1)
    place = length[:, None] + inputs.ahead[:width]
    each = slots[:, None].expand(-1, width).flatten()
    place = place.flatten()
    groups = ((shape.rows, width),)
    hidden, logits = model.forward(tokens.flatten(), each, place, place, groups)
    logits = logits.view(shape.rows, width, VOCAB_SIZE)
    chosen = rule.judge(logits, tokens)
    result, committed = rule.settle(tokens, chosen)
    if shape.observes:
        assert drafter is not None
        drafter.observe(*rule.heard, hidden.unflatten(0, (-1, width)), tokens, committed)
    return Decoded(result, logits, chosen)


class TorchStaticRule:
    """On torch's operations: every part of the rule for every row, which changes no bits."""

    def __init__(self, state: SlotState, inputs: Inputs, width: int) -> None:
        self._state, self._inputs = state, inputs
        group = Group(inputs.slots, width, Features(sampled=True, filtered=True, adjusted=True))
        self._rule = _Rule(state, group)
        self.length = self._rule.length
        self.last = state.last[inputs.slots]
        watched = inputs.watched > 0
        self.heard = (
            torch.where(watched, inputs.slots, inputs.scratch),
            torch.where(watched, self.length, 0),
        )

    def pick(self, step: int, logits: Tensor, following: Following | None = None) -> Tensor:
        return self._rule.pick(step, logits, following)

    def judge(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return self._rule.judge(logits, tokens[:, 1:])

    def settle(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        state, slots, drafts = self._state, self._inputs.slots, self._inputs.drafts[:, None]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        room = state.end[slots] - self.length - 1
        # behind a row's own drafts stands what no choice equals
        judged = torch.where(places[:-1] < drafts, tokens[:, 1:], -1)
        emitted = accept(judged, chosen, room, self._rule.eos)
        # one that has ended idles too, as rounds may follow before the host knows
        working = (drafts[:, 0] != IDLE) & (room > 0)
        count = torch.where(working, emitted.count, 0)
        committed = count.clamp_min(1)
        newest = chosen.gather(1, committed[:, None] - 1)[:, 0]
        state.length[slots] = self.length + count
        state.last[slots] = torch.where(working, newest, self.last)
        ended = working & emitted.ended
        state.end[slots] = torch.where(ended, self.length + count + 1, state.end[slots])
        held = (places < count[:, None])[..., None]
        state.counts[slots] += (marked(chosen) * held).sum(1)
        figures = torch.stack((emitted.count, emitted.accepted, emitted.ended), 1)
        return torch.cat((chosen, torch.where(working[:, None], figures, 0)), 1), committed


class _Rule(TorchRule):
    """Noise is made where it is added: none is kept, and nothing has to be ready before a round."""

    def noise(self, slots: Tensor, position: Tensor) -> Tensor:
        return gumbel(self.state.seed[slots], position)
