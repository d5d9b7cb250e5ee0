"""The parallel prophet's drafts in one call of the compiled core."""

from weakref import finalize

import torch
from torch import Tensor

from specdec.drafter import Picker
from specdec.native_library import native_library, team
from specdec.native_rule import NativeRule
from specdec.native_stack import NativeStack, plain
from specdec.parallel_prophet import ParallelProphet


class NativeCell:
    """The recurrent cell behind a prophet's block.  c rows, γ drafts, P width of the prophet."""

    def __init__(self, prophet: ParallelProphet, stack: NativeStack, dtype: torch.dtype) -> None:
        self._library, self._team, self._stack = native_library(), team(), stack
        self._handle: int = self._library.specdec_cell(
            prophet.config.block.hidden_size, dtype == torch.bfloat16
        )
        finalize(self, self._library.specdec_cell_free, self._handle)
        arrays = [
            plain(prophet.recurrent.weight.to(dtype)),
            plain(prophet.gates.weight),
            plain(prophet.transition.weight),
        ]
        self._library.specdec_cell_weights(self._handle, *(a.data_ptr() for a in arrays))

    def draft(
        self, slots: Tensor, x: Tensor, last: Tensor, place: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        """Bytes [c, γ] after last [c], whose inputs to the block are x [c, P] at place [c]."""
        if not isinstance(rule, NativeRule):
            raise TypeError("the compiled core drafts by its own rule")
        drafts = torch.empty(len(slots), gamma, dtype=torch.int64)
        arrays = [part.contiguous() for part in (slots, place, last, x)]
        self._library.specdec_draft_parallel(
            self._stack.handle,
            self._handle,
            self._team,
            rule.slots_at,
            len(slots),
            gamma,
            *(a.data_ptr() for a in arrays),
            drafts.data_ptr(),
        )
        return drafts
