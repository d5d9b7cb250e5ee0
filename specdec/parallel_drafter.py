"""The parallel prophet while decoding: its block's cache for each slot, one pass a round.

A committed place's key and value go into the cache as soon as the model's states are known, which
takes no attention; the last committed byte, whose place is the model's still to come, runs through
the block when drafts are wanted, and the recurrent cell goes on from there.

c rows of a group, W rows verified for each, γ drafts, D width of the model, P width of the prophet.
"""

from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.config import LONGEST_DRAFT
from specdec.drafter import Picker
from specdec.layers import wide
from specdec.native_cell import NativeCell
from specdec.native_stack import NativeStack
from specdec.packed import SLACK, PackedStack, pack_linear
from specdec.parallel_prophet import ParallelProphet, gated


class ParallelDrafter:
    """Runs a `ParallelProphet` for the slots.

    `context` is the most bytes of a slot's text.
    """

    longest = LONGEST_DRAFT

    def __init__(
        self,
        prophet: ParallelProphet,
        *,
        slots: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
        native: bool = False,
    ) -> None:
        kind = wide(dtype)
        self.embedding = prophet.embedding.weight.detach().to(device, kind)
        self.missing = prophet.missing.detach().to(device, kind)
        projection = prophet.projection.weight.detach().to(device, dtype)
        # a few rows: the compiled core's operands are float32, and packing would not pay
        self.projection = (
            partial(F.linear, weight=projection.float()) if native else pack_linear(projection)
        )
        self.states_type = kind if native else dtype
        places = context + SLACK
        self.drafts: _Drafts
        if native:
            stack = NativeStack(
                prophet.stack, prophet.head.weight, slots=slots, places=places, dtype=dtype
            )
            self.passes: NativeStack | PackedStack = stack
            self.drafts = NativeCell(prophet, stack, dtype)
        else:
            packed = PackedStack(
                prophet.stack,
                prophet.head.weight,
                slots=slots,
                places=places,
                device=device,
                dtype=dtype,
            )
            self.passes = packed
            self.drafts = _PackedCell(prophet, packed, device, dtype)
        self.states = torch.zeros(
            slots, prophet.config.model_hidden_size, device=device, dtype=kind
        )
        """The model's state of each slot's last place."""

    @torch.no_grad()
    def observe(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> None:
        hidden = hidden.to(self.states.dtype)
        previous = torch.cat((self.states[slots][:, None], hidden[:, :-1]), 1)
        width = tokens.shape[1]
        place = start[:, None] + torch.arange(width, device=start.device)
        # behind `advance` lie rejected drafts: each place is written again before it is seen
        self.passes.remember(
            self._inputs(previous.flatten(0, 1), place.flatten(), tokens.flatten()),
            slots.repeat_interleave(width),
            place.flatten(),
        )
        self.states[slots] = hidden[torch.arange(len(slots), device=slots.device), advance - 1]

    def copy(self, source: int, target: int, places: int) -> None:
        self.passes.copy(source, target, places)
        self.states[target] = self.states[source]

    @torch.no_grad()
    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        x = self._inputs(self.states[slots], length, last)
        return self.drafts.draft(slots, x, last, length, gamma, rule)

    def _inputs(self, previous: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
        """The block's inputs [N, P] at places [N], of states before them [N, D] and bytes [N]."""
        projected = self.projection(previous.to(self.states_type)).to(self.missing.dtype)
        known = torch.where((place > 0)[:, None], projected, self.missing)
        return known + self.embedding[tokens]


class _Drafts(Protocol):
    def draft(
        self, slots: Tensor, x: Tensor, last: Tensor, place: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        """Bytes [c, γ] after last [c], whose inputs to the block are x [c, P] at place [c]."""


class _PackedCell:
    """The block and the recurrent cell on torch's operations, for any device and type."""

    def __init__(
        self, prophet: ParallelProphet, stack: PackedStack, device: torch.device, dtype: torch.dtype
    ) -> None:
        kind = wide(dtype)
        self.stack, self.dtype = stack, dtype
        self.gates = prophet.gates.weight.detach().to(device, kind)
        self.transition = prophet.transition.weight.detach().to(device, kind)
        self.recurrent = pack_linear(prophet.recurrent.weight.to(device, dtype))

    def draft(
        self, slots: Tensor, x: Tensor, last: Tensor, place: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        state, scores = self.stack.forward(x, slots, place, place, ((len(slots), 1),))
        drafts = [rule.pick(0, scores + self.transition[last])]
        for step in range(1, gamma):
            byte = drafts[-1]
            state = gated(state, self.gates[byte], self.recurrent(state.to(self.dtype)))
            drafts.append(rule.pick(step, self.stack.head(state) + self.transition[byte]))
        return torch.stack(drafts, 1)
