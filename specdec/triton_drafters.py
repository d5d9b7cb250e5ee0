"""Both kinds of prophet while decoding, on Triton kernels.

What goes into an autoregressive one is prepared by torch's operations.  Imports Triton.

c rows, t or W places of each, γ drafts, D width of the model, P width of the prophet.
"""

import torch
from torch import Tensor

from specdec.autoregressive_drafter import AutoregressiveDrafter
from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.config import LONGEST_DRAFT
from specdec.drafter import Drafter
from specdec.parallel_drafter import ParallelDrafter
from specdec.parallel_prophet import ParallelProphet
from specdec.prophet import Prophet
from specdec.triton_kernels import inputs_kernel
from specdec.triton_stack import TritonStack, add, final, gate, linear, plain


class StackPasses:
    """An autoregressive prophet's passes (`specdec.autoregressive_drafter.Passes`) over a cache of
    its own for each slot, of which every place is written again before it is seen.
    """

    def __init__(
        self,
        prophet: AutoregressiveProphet,
        *,
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        places = prophet.config.leading_states + LONGEST_DRAFT
        self._stack = TritonStack(
            prophet.stack,
            prophet.head.weight,
            slots=slots,
            places=places,
            device=device,
            dtype=dtype,
        )
        self._places = torch.arange(places, device=device)

    def begin(self, slots: Tensor) -> Tensor:
        return slots

    def advance(self, x: Tensor, newest: int, kept: Tensor) -> Tensor:
        count, rows = x.shape[:2]
        place = self._places[newest + 1 - rows : newest + 1].expand(count, -1).flatten()
        each = kept[:, None].expand(-1, rows).flatten()
        _, logits = self._stack.forward(x.flatten(0, 1), each, place, place, ((count, rows),))
        return logits.view(count, rows, -1)[:, -1]


class TritonParallelDrafter(ParallelDrafter):
    def __init__(
        self,
        prophet: ParallelProphet,
        *,
        slots: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            prophet,
            slots=slots,
            context=context,
            device=device,
            dtype=dtype,
            make_stack=TritonStack,
        )
        self.projection_weight = plain(prophet.projection.weight, device, dtype)
        cell = prophet.cell
        self.cell_embedding = plain(cell.embedding.weight, device, torch.float32)
        self.gate_up = plain(cell.gate_up.weight, device, dtype)
        self.down = plain(cell.down.weight, device, dtype)
        self.head_weight = plain(prophet.head.weight, device, torch.float32)
        self.even = torch.ones(self.head_weight.shape[1], device=device)

    def _observed(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._fed(slots, start, tokens, hidden, advance)

    def _begin(self, slots: Tensor, place: Tensor, last: Tensor) -> Tensor:
        return self._fed(slots, place, last[:, None])[0]

    def _fed(
        self,
        slots: Tensor,
        start: Tensor,
        tokens: Tensor,
        hidden: Tensor | None = None,
        advance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's inputs [c·W, P] at W places from start [c] on, their slots and their places.

        Where hidden [c, W, D] and advance [c] are given they are observed.
        """
        (count, width), model = tokens.shape, self.states.shape[1]
        rows, prophet = count * width, len(self.projection_weight)
        before = self.states.new_empty(rows, model, dtype=self.dtype)
        x = self.states.new_empty(rows, prophet)
        each, place = slots.new_empty(rows), slots.new_empty(rows)
        inputs_kernel[(count, width)](
            self.states,
            self.states if hidden is None else hidden.contiguous(),
            slots,
            start,
            tokens.contiguous(),
            start if advance is None else advance,
            self.embedding,
            self.missing,
            before,
            x,
            each,
            place,
            model,
            1 << (model - 1).bit_length(),
            prophet,
            1 << (prophet - 1).bit_length(),
            advance is not None,
        )
        add(x, before, self.projection_weight, x)
        return x, each, place

    def _advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.empty_like(state)
        inner = state.new_empty(len(state), self.down.shape[1], dtype=self.dtype)
        cell = (self.cell_embedding, tokens, seen)
        gate(state, self.even, self.gate_up, inner, self.cell.eps, cell)
        add(seen, inner, self.down, seen)
        return final(seen, self.even, self.head_weight, self.cell.eps)


def build_triton_drafter(
    prophet: Prophet, *, slots: int, context: int, device: torch.device, dtype: torch.dtype
) -> Drafter:
    if isinstance(prophet, ParallelProphet):
        return TritonParallelDrafter(
            prophet, slots=slots, context=context, device=device, dtype=dtype
        )
    assert isinstance(prophet, AutoregressiveProphet)
    passes = StackPasses(prophet, slots=slots, device=device, dtype=dtype)
    drafter = AutoregressiveDrafter(prophet, slots=slots, device=device, dtype=dtype, passes=passes)
    drafter.projection = linear(prophet.projection.weight, device, dtype)
    return drafter
