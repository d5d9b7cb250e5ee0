"""A round in one call of the compiled core, and the prophets as it keeps them.

Rows of any draft length go through it side by side.  The same bytes as `specdec.torch_round` but
for near-ties: sums are ordered otherwise, so a process decodes by one or the other.
"""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary, finalize

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
from specdec.round import Prefill, Round, RoundResult, RowResult, Seconds
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
        *((name, ctypes.c_void_p) for name in ("logits", "seconds")),
    ]


class _Buffers:
    """What rounds over a state are described by and answer into, used again and again.

    Arrays of ctypes: their elements are read and written faster than numpy's, one by one.
    """

    def __init__(self, state: SlotState) -> None:
        self.slots = _Slots.of(state)
        self.round = _Round()
        integers, octets = ctypes.c_int64 * state.slots, ctypes.c_uint8 * state.slots
        self.slot, self.gamma, self.watched = integers(), integers(), octets()
        self.prefill_slot, self.prefill_start = integers(), integers()
        self.prefill_size = integers()
        self.prefill_scored, self.prefill_watched = octets(), octets()
        self.tokens = (ctypes.c_uint8 * (state.slots * (LONGEST_DRAFT + 1)))()
        self.count, self.accepted, self.ended = integers(), integers(), octets()
        self.seconds = (ctypes.c_double * 3)()
        for name, kind, *_ in _Round._fields_:
            if kind is ctypes.c_void_p and hasattr(self, name):
                setattr(self.round, name, ctypes.addressof(getattr(self, name)))
        self.logits = torch.empty(0, VOCAB_SIZE)

    def make_room(self, places: int) -> None:
        if self.logits.shape[0] < places:
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
    judged = count
    for index, row in enumerate(decodes):
        buffers.slot[index], buffers.gamma[index] = row.slot, row.drafts
        buffers.watched[index] = row.watched
        judged += row.drafts
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
    for index, row in enumerate(decodes):
        begin = index * (LONGEST_DRAFT + 1)
        output = bytes(buffers.tokens[begin : begin + buffers.count[index]])
        logprobs: tuple[ByteLogprob, ...] = ()
        if row.alternatives >= 0:
            logprobs = _records(buffers.logits[at:], output, row.alternatives)
        ended = buffers.ended[index] != 0
        results.append(RowResult(output, row.drafts, buffers.accepted[index], ended, logprobs))
        at += row.drafts + 1
    scored = {}
    for prefill in prefills:
        logprobs = ()
        if prefill.following is not None:
            logprobs = _records(buffers.logits[at:], prefill.following, prefill.alternatives)
        scored[prefill.slot] = RowResult(b"", 0, 0, ended=False, logprobs=logprobs)
        at += len(prefill.text)
    spent = Seconds(*buffers.seconds)
    return RoundResult(tuple(results), tuple(scored[p.slot] for p in work.prefills), spent)


def _describe(buffers: _Buffers, prefills: Sequence[Prefill]) -> bytes:
    """Writes down what prompts are consumed; returns their bytes, which the core will read."""
    buffers.round.prefills = len(prefills)
    for index, prefill in enumerate(prefills):
        buffers.prefill_slot[index], buffers.prefill_start[index] = prefill.slot, prefill.start
        buffers.prefill_size[index] = len(prefill.text)
        buffers.prefill_scored[index] = prefill.following is not None
        buffers.prefill_watched[index] = prefill.watched
    text = b"".join(prefill.text for prefill in prefills)
    buffers.round.prompt = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p) if text else None
    return text


def _records(logits: Tensor, content: bytes, alternatives: int) -> tuple[ByteLogprob, ...]:
    """Of the first len(content) places, whose bytes are `content`."""
    chosen = torch.tensor(list(content))[None]
    found = logprobs_of(logits[None, : len(content)], chosen, alternatives)
    return found.records(0, content, alternatives)
