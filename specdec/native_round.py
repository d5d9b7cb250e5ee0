"""A round in one call of the compiled core, and the prophets as it keeps them.

Rows of any draft length go through it side by side.  The same bytes as `specdec.torch_round` but
for near-ties: sums are ordered otherwise, so a process decodes by one or the other.
"""

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.config import LONGEST_DRAFT, VOCAB_SIZE
from specdec.logprobs import ByteLogprob, logprobs_of
from specdec.native_library import native_library, team
from specdec.native_stack import NativeModel, NativeStack, plain
from specdec.packed import SLACK
from specdec.parallel_prophet import ParallelProphet
from specdec.prophet import Prophet
from specdec.round import Prefill, Round, RoundResult, RowResult
from specdec.state import NOISE_AHEAD, SlotState


class NativeDrafter:
    """A prophet of either kind in the core, told of rows and asked for drafts within its rounds."""

    longest = LONGEST_DRAFT

    def __init__(self, prophet: Prophet, *, slots: int, context: int, dtype: torch.dtype) -> None:
        config, library = prophet.config, native_library()
        shape: list[float] = [dtype == torch.bfloat16, slots, config.model_hidden_size]
        if isinstance(prophet, ParallelProphet):
            build, places = library.specdec_parallel, context + SLACK
            shape.append(prophet.cell.eps)
            further = [
                plain(prophet.cell.embedding.weight),
                plain(prophet.cell.gate_up.weight.to(dtype)),
                plain(prophet.cell.down.weight.to(dtype)),
                plain(prophet.transition.weight),
            ]
        else:
            assert isinstance(prophet, AutoregressiveProphet)
            # every place is written again before it is seen
            build, places = library.specdec_autoregressive, config.leading_states + self.longest
            shape.append(config.leading_states)
            further = []
        self._library = library
        self._stack = NativeStack(
            prophet.stack, prophet.head.weight, slots=slots, places=places, dtype=dtype
        )
        weights = [
            plain(prophet.embedding.weight),
            plain(prophet.projection.weight.to(dtype)),
            plain(prophet.missing),
            *further,
        ]
        pointers = [weight.data_ptr() for weight in weights]
        self.handle: int = build(self._stack.handle, *shape, *pointers)
        finalize(self, library.specdec_drafter_free, self.handle)

    def keep(self, slot: int) -> None:
        self._library.specdec_drafter_keep(self.handle, slot)

    def copy(self, source: int, target: int, places: int) -> None:
        self._library.specdec_drafter_copy(self.handle, source, target, places)


class _Slots(ctypes.Structure):
    """SpecdecSlots of byte_rule.h: where the tensors of a `SlotState` lie."""

    _SAMPLING = (
        *("temperature", "top_p", "min_p"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("bias", "top_k", "eos", "allow_eos_from"),
    )
    _STATE = ("counts", "noise", "noise_start", "length", "last", "end")
    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_SAMPLING, *_STATE)),
        ("ahead", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, state: SlotState) -> "_Slots":
        tensors = [getattr(state.sampling, name) for name in cls._SAMPLING]
        tensors += [getattr(state, name) for name in cls._STATE]
        assert all(tensor.is_contiguous() for tensor in tensors)
        return cls(*(tensor.data_ptr() for tensor in tensors), NOISE_AHEAD)


class _Round(ctypes.Structure):
    """Round of round.cpp."""

    _fields_ = [
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("slot", "gamma", "watched")),
        ("prefills", ctypes.c_int64),
        *((f"prefill_{name}", ctypes.c_void_p) for name in ("slot", "start", "size")),
        *((f"prefill_{name}", ctypes.c_void_p) for name in ("scored", "watched")),
        *((name, ctypes.c_void_p) for name in ("prompt", "tokens", "count", "accepted", "ended")),
        ("logits", ctypes.c_void_p),
    ]


_INTEGERS = (
    *("slot", "gamma", "prefill_slot", "prefill_start", "prefill_size"),
    *("count", "accepted"),
)
_BYTES = ("watched", "prefill_scored", "prefill_watched", "tokens", "ended")


class _Buffers:
    """What rounds over a state are described by and answer into, used again and again."""

    def __init__(self, state: SlotState) -> None:
        self.slots = _Slots.of(state)
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self.round = _Round()
        for name in (*_INTEGERS, *_BYTES):
            shape = (state.slots, LONGEST_DRAFT + 1) if name == "tokens" else (state.slots,)
            self._arrays[name] = np.zeros(shape, np.int64 if name in _INTEGERS else np.uint8)
            setattr(self.round, name, self._arrays[name].ctypes.data)
        self.logits = torch.empty(0, VOCAB_SIZE)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def make_room(self, places: int) -> None:
        if len(self.logits) < places:
            self.logits = torch.empty(places, VOCAB_SIZE)
            self.round.logits = self.logits.data_ptr()


_buffers: WeakKeyDictionary[SlotState, _Buffers] = WeakKeyDictionary()


def run_native_round(
    model: NativeModel, drafter: NativeDrafter | None, state: SlotState, work: Round
) -> RoundResult:
    """See `specdec.round.RunRound`.  The state's tensors are only ever written in place."""
    if state not in _buffers:
        _buffers[state] = _Buffers(state)
    buffers = _buffers[state]
    decodes = work.decodes
    count = buffers.round.rows = len(decodes)
    buffers["slot"][:count] = [row.slot for row in decodes]
    buffers["gamma"][:count] = [row.drafts for row in decodes]
    buffers["watched"][:count] = [row.watched for row in decodes]
    judged = count + sum(row.drafts for row in decodes)
    # the core leaves out what nobody wants of the last ones
    prefills = sorted(work.prefills, key=lambda p: (p.following is None, not p.watched))
    text = _describe(buffers, prefills)
    buffers.make_room(judged + len(text))
    native_library().specdec_round(
        model.handle,
        drafter.handle if drafter else None,
        team(),
        ctypes.byref(buffers.slots),
        ctypes.byref(buffers.round),
    )
    results, at = [], 0
    counts, accepted = buffers["count"][:count].tolist(), buffers["accepted"][:count].tolist()
    for index, row in enumerate(decodes):
        output = buffers["tokens"][index, : counts[index]].tobytes()
        logprobs: tuple[ByteLogprob, ...] = ()
        if row.alternatives >= 0:
            logprobs = _records(buffers.logits[at:], output, row.alternatives)
        ended = bool(buffers["ended"][index])
        results.append(RowResult(output, row.drafts, accepted[index], ended, logprobs))
        at += row.drafts + 1
    scored = {}
    for prefill in prefills:
        logprobs = ()
        if prefill.following is not None:
            logprobs = _records(buffers.logits[at:], prefill.following, prefill.alternatives)
        scored[prefill.slot] = RowResult(b"", 0, 0, ended=False, logprobs=logprobs)
        at += len(prefill.text)
    return RoundResult(tuple(results), tuple(scored[p.slot] for p in work.prefills))


def _describe(buffers: _Buffers, prefills: Sequence[Prefill]) -> npt.NDArray[np.uint8]:
    """Writes down what prompts are consumed; returns their bytes, which the core will read."""
    count = buffers.round.prefills = len(prefills)
    buffers["prefill_slot"][:count] = [p.slot for p in prefills]
    buffers["prefill_start"][:count] = [p.start for p in prefills]
    buffers["prefill_size"][:count] = [len(p.text) for p in prefills]
    buffers["prefill_scored"][:count] = [p.following is not None for p in prefills]
    buffers["prefill_watched"][:count] = [p.watched for p in prefills]
    text = np.frombuffer(b"".join(p.text for p in prefills), np.uint8)
    buffers.round.prompt = text.ctypes.data
    return text


def _records(logits: Tensor, content: bytes, alternatives: int) -> tuple[ByteLogprob, ...]:
    """Of the first len(content) places, whose bytes are `content`."""
    chosen = torch.tensor(list(content))[None]
    found = logprobs_of(logits[None, : len(content)], chosen, alternatives)
    return found.records(0, content, alternatives)
