"""The byte rule on the compiled core: one call for all rows of a group.

The same rule as `specdec.sampling`, summed in another order: a process decides all of its bytes by
one or the other.
"""

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdec.config import LONGEST_DRAFT
from specdec.native_library import native_library
from specdec.rule import Group
from specdec.state import NOISE_AHEAD, SlotState

_TENSORS = (
    *("temperature", "top_p", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("bias", "top_k", "eos", "allow_eos_from"),
)


class _Slots(ctypes.Structure):
    """SpecdecSlots of byte_rule.cpp: where the tensors of a `SlotState` lie."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_TENSORS, "counts", "noise")),
        ("noise_start", ctypes.c_void_p),
        ("length", ctypes.c_void_p),
        ("ahead", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, state: SlotState) -> "_Slots":
        sampling = [getattr(state.sampling, name) for name in _TENSORS]
        tensors = [*sampling, state.counts, state.noise, state.noise_start, state.length]
        assert all(tensor.is_contiguous() for tensor in tensors)
        return cls(*(tensor.data_ptr() for tensor in tensors), NOISE_AHEAD)


_slots: WeakKeyDictionary[SlotState, _Slots] = WeakKeyDictionary()


class NativeRule:
    """See `specdec.rule.Rule`.  The state's tensors are only ever written in place."""

    def __init__(self, state: SlotState, group: Group) -> None:
        if state not in _slots:
            _slots[state] = _Slots.of(state)
        self.slots_at = ctypes.byref(_slots[state])
        """What the core's functions take for the slots."""
        self._choose = native_library().specdec_choose
        self._members = group.slots
        self.length = state.length[group.slots]
        self.eos = state.sampling.eos[group.slots]
        self._picked = torch.zeros(len(group.slots), LONGEST_DRAFT, dtype=torch.int64)

    def pick(self, step: int, logits: Tensor) -> Tensor:
        picked = self._chosen(logits, 1, step, self._picked)[:, 0]
        self._picked[:, step] = picked
        return picked

    def judge(self, logits: Tensor, drafts: Tensor) -> Tensor:
        return self._chosen(logits, logits.shape[1], 0, drafts.contiguous())

    def _chosen(self, logits: Tensor, width: int, before: int, drafts: Tensor) -> Tensor:
        count = len(self._members)
        logits = logits.contiguous()
        chosen = torch.empty(count, width, dtype=torch.int64)
        self._choose(
            self.slots_at,
            count,
            width,
            before,
            self._members.data_ptr(),
            logits.data_ptr(),
            drafts.data_ptr(),
            drafts.shape[1],
            chosen.data_ptr(),
        )
        return chosen
