"""The byte rule on Triton kernels: one for a draft, one for all choices, one to advance.

What the rule is says `specdec.sampling`; imports Triton.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.config import LONGEST_DRAFT, VOCAB_SIZE
from specdec.drafter import Following
from specdec.state import SlotState
from specdec.static_round import IDLE, Inputs
from specdec.triton_rule_kernels import begin_kernel, choose_kernel, settle_kernel


class TritonRule:
    """The rule for the rows of `inputs` (`specdec.static_round.StaticRule`)."""

    def __init__(self, state: SlotState, inputs: Inputs, width: int) -> None:
        self._state, self._inputs, self._width = state, inputs, width
        rows = inputs.slots.shape[0]
        # an even number in memory: what a pointer is a multiple of must not depend on the rows
        even = rows + rows % 2
        numbers = torch.empty(width + 4, even, dtype=torch.int64, device=state.device)
        self.length, self.last, known, start, *self._drafts = (row[:rows] for row in numbers)
        self.heard = known, start
        begin_kernel[(rows,)](
            inputs.slots,
            inputs.watched,
            state.length,
            state.last,
            self.length,
            self.last,
            known,
            start,
            inputs.scratch,
        )

    def pick(self, step: int, logits: Tensor, following: Following | None = None) -> Tensor:
        # the rule looks at drafts before a place; where the last byte would be is never read
        picked: Tensor = self._drafts[step + 1]
        self._choose(logits, following, self._drafts[0], (1, picked.stride(0)), picked, step, 1)
        return picked

    def judge(self, logits: Tensor, tokens: Tensor) -> Tensor:
        chosen = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        self._choose(logits, None, tokens, tokens.stride(), chosen, 0, self._width)
        return chosen

    def settle(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        state, inputs, rows = self._state, self._inputs, len(self.last)
        result = chosen.new_empty(rows, self._width + 3)
        committed = torch.empty_like(self.last)
        settle_kernel[(rows,)](
            tokens,
            chosen,
            inputs.slots,
            inputs.drafts,
            state.length,
            state.last,
            state.end,
            state.sampling.eos,
            state.counts,
            result,
            committed,
            self._width,
            IDLE,
            1 << LONGEST_DRAFT.bit_length(),
            VOCAB_SIZE,
            num_warps=1,  # what it reads it also writes: several warps would race
        )
        return result, committed

    def _choose(
        self,
        logits: Tensor,
        following: Following | None,
        tokens: Tensor,
        strides: Sequence[int],
        chosen: Tensor,
        first: int,
        places: int,
    ) -> None:
        state, sampling = self._state, self._state.sampling
        choose_kernel[(len(self.last), places)](
            logits.contiguous(),
            *(following or (logits, tokens)),
            tokens,
            chosen,
            self._inputs.slots,
            state.length,
            state.seed,
            state.counts,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.repetition_penalty,
            sampling.bias,
            sampling.eos,
            sampling.allow_eos_from,
            first,
            *strides,
            VOCAB_SIZE,
            following is not None,
            num_warps=4,
            enable_fp_fusion=False,  # noise has the same bits everywhere
        )
