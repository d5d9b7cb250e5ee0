"""The byte rule on Triton kernels: one for a draft, one for all choices, one to advance.

What the rule is says `specdec.sampling`; imports Triton.
"""

import torch
from torch import Tensor

from specdec.config import LONGEST_DRAFT, VOCAB_SIZE
from specdec.state import SlotState
from specdec.static_round import IDLE, Inputs
from specdec.triton_rule_kernels import choose_kernel, settle_kernel


class TritonRule:
    """The rule for the rows of `inputs` (`specdec.static_round.StaticRule`)."""

    def __init__(self, state: SlotState, inputs: Inputs, width: int) -> None:
        self._state, self._inputs, self._width = state, inputs, width
        self.length = state.length[inputs.slots]
        self.last = state.last[inputs.slots]
        # the rule looks at drafts before a place; the last byte's column is never read
        self._drafts = torch.empty(len(self.last), width, dtype=torch.int64, device=state.device)

    def pick(self, step: int, logits: Tensor) -> Tensor:
        picked = torch.empty_like(self.last)
        self._choose(logits, self._drafts, picked, step, 1)
        if step + 2 < self._width:
            self._drafts[:, step + 1] = picked
        return picked

    def judge(self, logits: Tensor, tokens: Tensor) -> Tensor:
        chosen = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        self._choose(logits, tokens, chosen, 0, self._width)
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
        self, logits: Tensor, tokens: Tensor, chosen: Tensor, first: int, places: int
    ) -> None:
        state, sampling = self._state, self._state.sampling
        choose_kernel[(len(self.last), places)](
            logits.contiguous(),
            tokens.contiguous(),
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
            self._width,
            VOCAB_SIZE,
            num_warps=4,
            enable_fp_fusion=False,  # noise has the same bits everywhere
        )
