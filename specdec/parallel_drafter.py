"""The parallel prophet while decoding: its block's cache for each slot, one pass a round.

A committed place's key and value go into the cache as soon as the model's states are known, which
takes no attention; the last committed byte, whose place is the model's still to come, runs through
the block when drafts are wanted, and the recurrent cell goes on from there.

c rows of a group, W rows verified for each, γ drafts, D width of the model, P width of the prophet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.cell import Cell, normed
from specdec.config import LONGEST_DRAFT
from specdec.drafter import ALL, Following, Picker
from specdec.layers import wide
from specdec.packed import SLACK, MakeStack, PackedStack, pack_linear
from specdec.parallel_prophet import ParallelProphet


class PackedCell:
    """A cell's weights, ready to run."""

    def __init__(self, cell: Cell, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype, self.eps = dtype, cell.eps
        self.embedding = cell.embedding.weight.detach().to(device, wide(dtype))
        self.gate_up = pack_linear(cell.gate_up.weight.to(device, dtype))
        self.down = pack_linear(cell.down.weight.to(device, dtype))

    def step(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The next states [c, P] of states [c, P] and bytes [c]."""
        seen = normed(state + self.embedding[tokens], self.eps)
        gate, up = self.gate_up(seen.to(self.dtype)).chunk(2, -1)
        return normed(seen + self.down(F.silu(gate) * up), self.eps)


class ParallelDrafter:
    """Runs a `ParallelProphet` for the slots.

    `context` is the most bytes of a slot's text.
    """

    longest, memory = LONGEST_DRAFT, ALL

    def __init__(
        self,
        prophet: ParallelProphet,
        *,
        slots: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
        make_stack: MakeStack = PackedStack,
    ) -> None:
        kind = wide(dtype)
        self.dtype = dtype
        self.embedding = prophet.embedding.weight.detach().to(device, kind)
        self.missing = prophet.missing.detach().to(device, kind)
        self.projection = pack_linear(prophet.projection.weight.to(device, dtype))
        self.cell = PackedCell(prophet.cell, device, dtype)
        self.transition = prophet.transition.weight.detach().to(device, kind)
        self.stack = make_stack(
            prophet.stack,
            prophet.head.weight,
            slots=slots,
            places=context + SLACK,
            device=device,
            dtype=dtype,
        )
        self.states = torch.zeros(
            slots, prophet.config.model_hidden_size, device=device, dtype=kind
        )
        """The model's state of each slot's last place."""
        self.kept = torch.zeros_like(self.states)

    @torch.no_grad()
    def observe(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> None:
        # behind `advance` lie rejected drafts: each place is written again before it is seen
        self.stack.remember(*self._observed(slots, start, hidden, tokens, advance))

    def keep(self, slot: int) -> None:
        self.kept[slot] = self.states[slot]

    def copy(self, source: int, target: int, places: int) -> None:
        self.stack.copy(source, target, places)
        self.states[target] = self.kept[target] = self.kept[source]

    @torch.no_grad()
    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        x = self._begin(slots, length, last)
        state, scores = self.stack.forward(x, slots, length, length, ((len(slots), 1),))
        drafts = [rule.pick(0, scores, Following(self.transition, last))]
        for step in range(1, gamma):
            byte = drafts[-1]
            state, scores = self._advance(state, byte)
            drafts.append(rule.pick(step, scores, Following(self.transition, byte)))
        return torch.stack(drafts, 1)

    def _observed(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's inputs [c·W, P] at what is observed, their slots and their places; the slots'
        states are those of the last committed place from then on."""
        hidden = hidden.to(self.states.dtype)
        previous = torch.cat((self.states[slots][:, None], hidden[:, :-1]), 1)
        width = tokens.shape[1]
        place = (start[:, None] + torch.arange(width, device=start.device)).flatten()
        x = self._inputs(previous.flatten(0, 1), place, tokens.flatten())
        self.states[slots] = hidden[torch.arange(len(slots), device=slots.device), advance - 1]
        return x, slots.repeat_interleave(width), place

    def _begin(self, slots: Tensor, place: Tensor, last: Tensor) -> Tensor:
        """The block's inputs [c, P] at the last bytes, from which it drafts."""
        return self._inputs(self.states[slots], place, last)

    def _advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The next states [c, P] and the head's scores [c, 256] of them."""
        state = self.cell.step(state, tokens)
        return state, self.stack.head(state)

    def _inputs(self, previous: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
        """The block's inputs [N, P] at places [N], of states before them [N, D] and bytes [N]."""
        projected = self.projection(previous.to(self.dtype)).to(self.missing.dtype)
        known = torch.where((place > 0)[:, None], projected, self.missing)
        return known + self.embedding[tokens]
