"""A round or several in one call of the compiled core, and the prophets as it keeps them.

Rows of any draft length go through it side by side.  The same bytes as `specdec.torch_round` but
for near-ties: sums are ordered otherwise, so a process decodes by one or the other.
"""

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor

from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.config import LONGEST_DRAFT, VOCAB_SIZE
from specdec.logprobs import ByteLogprob, logprobs_of
from specdec.lookup import TIERS
from specdec.native_library import native_library, team
from specdec.native_stack import NativeModel, NativeStack, plain
from specdec.packed import SLACK
from specdec.parallel_prophet import ParallelProphet
from specdec.prophet import Prophet
from specdec.round import (
    MOST_ROUNDS,
    PLAIN,
    Prefill,
    Round,
    RoundResult,
    RowResult,
    Seconds,
    Try,
)
from specdec.state import SlotState

_OUTPUT = MOST_ROUNDS * (LONGEST_DRAFT + 1)
"""Bytes that a row may get from a call."""


MEMORY = 32
"""Bytes of a prompt that a parallel prophet is told of: more let it guess no better, and the
model's last block has to compute them for it.  As many wait, in drafter.h, while a row rests."""


class NativeDrafter:
    """A prophet of either kind in the core, told of rows and asked for drafts within its rounds."""

    longest = LONGEST_DRAFT

    def __init__(self, prophet: Prophet, *, slots: int, context: int, dtype: torch.dtype) -> None:
        config, library = prophet.config, native_library()
        shape: list[float] = [dtype == torch.bfloat16, slots, config.model_hidden_size]
        if isinstance(prophet, ParallelProphet):
            build, places, self.memory = library.specdec_parallel, context + SLACK, MEMORY
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
            self.memory = config.leading_states
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
        self._library.specdec_drafter_copy(self.handle, source, target)


class _Slots(ctypes.Structure):
    """SpecdecSlots of byte_rule.h: where the tensors of a `SlotState` lie."""

    _SAMPLING = (
        *("temperature", "top_p", "min_p"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("bias", "top_k", "eos", "allow_eos_from"),
    )
    _STATE = ("counts", "seed", "length", "last", "end")
    _fields_ = [(name, ctypes.c_void_p) for name in (*_SAMPLING, *_STATE)]

    @classmethod
    def of(cls, state: SlotState) -> "_Slots":
        tensors = [getattr(state.sampling, name) for name in cls._SAMPLING]
        tensors += [getattr(state, name) for name in cls._STATE]
        assert all(tensor.is_contiguous() for tensor in tensors)
        return cls(*(tensor.data_ptr() for tensor in tensors))


class _Round(ctypes.Structure):
    """Round of round.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "rounds")),
        *((name, ctypes.c_double) for name in ("span", "p_min")),
        *((name, ctypes.c_void_p) for name in ("interrupt", "slot", "gamma", "watched")),
        *((name, ctypes.c_void_p) for name in ("searched", "lookup")),
        ("prefills", ctypes.c_int64),
        *((f"prefill_{name}", ctypes.c_void_p) for name in ("slot", "start", "size")),
        *((f"prefill_{name}", ctypes.c_void_p) for name in ("scored", "watched")),
        *((name, ctypes.c_void_p) for name in ("prompt", "tokens", "count", "ended", "done")),
        *((name, ctypes.c_void_p) for name in ("tries", "logits", "seconds", "elapsed")),
        ("drafting", ctypes.c_void_p),
    ]


class _Tries(dict[int, Try]):
    """By how round.cpp's `tried` writes them: there are few, seen again and again."""

    def __missing__(self, code: int) -> Try:
        drafted, accepted, omitted = (code >> shift & 31 for shift in (0, 5, 10))
        self[code] = Try(drafted, accepted, (code >> 15) - 1, omitted)
        return self[code]


_tries = _Tries()


class _Buffers:
    """What rounds over a state are described by and answer into, used again and again.

    Arrays of ctypes: their elements are read and written faster than numpy's, one by one.
    """

    def __init__(self, state: SlotState) -> None:
        self.slots = _Slots.of(state)
        self.round = _Round()
        integers, octets = ctypes.c_int64 * state.slots, ctypes.c_uint8 * state.slots
        self.slot, self.gamma = integers(), integers()
        self.watched, self.searched = octets(), octets()
        parts = ctypes.c_int64 * (2 * state.slots)  # see `_parts`
        self.prefill_slot, self.prefill_start = parts(), parts()
        self.prefill_size, self.prefill_watched = parts(), parts()
        self.prefill_scored = (ctypes.c_uint8 * (2 * state.slots))()
        self.lookup = (ctypes.c_int64 * (state.slots * len(TIERS)))()
        self.tokens = (ctypes.c_uint8 * (state.slots * _OUTPUT))()
        self.count, self.done, self.ended = integers(), (ctypes.c_int64 * 1)(), octets()
        self.tries = (ctypes.c_int32 * (state.slots * MOST_ROUNDS))()
        self.seconds, self.elapsed = (ctypes.c_double * 3)(), (ctypes.c_double * MOST_ROUNDS)()
        self.drafting = (ctypes.c_int64 * 1)()
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
    buffers.round.rows = len(decodes)
    buffers.round.rounds, buffers.round.span = work.repeats, work.span_s
    buffers.round.p_min = work.p_min
    buffers.round.interrupt = work.interrupt.address
    judged = 0
    for index, row in enumerate(decodes):
        buffers.slot[index], buffers.gamma[index] = row.slot, row.drafts
        buffers.watched[index] = row.watched
        buffers.searched[index] = row.lookup is not None
        if row.lookup is not None:
            buffers.lookup[len(TIERS) * index : len(TIERS) * (index + 1)] = list(row.lookup)
        judged += 1 + row.longest
    # the core leaves out what nobody wants of the last ones
    parts = (part for prefill in work.prefills for part in _parts(prefill))
    prefills = sorted(parts, key=lambda p: (p.following is None, p.watched is None))
    text = _describe(buffers, prefills)
    buffers.make_room(judged + len(text))
    native_library().specdec_round(
        model.handle,
        drafter.handle if drafter else None,
        team(),
        ctypes.byref(buffers.slots),
        ctypes.byref(buffers.round),
    )
    results, at, rounds = [], 0, buffers.done[0]
    for index, row in enumerate(decodes):
        output = ctypes.string_at(buffers.round.tokens + index * _OUTPUT, buffers.count[index])
        tries, times = (PLAIN,) * rounds, {PLAIN: rounds}
        drafted = accepted = omitted = 0
        if row.longest:
            codes = buffers.tries[index * MOST_ROUNDS : index * MOST_ROUNDS + rounds]
            tries = tuple(map(_tries.__getitem__, codes))
            times = {_tries[code]: number for code, number in Counter(codes).items()}
            for tried, number in times.items():
                drafted += number * tried.drafted
                accepted += number * tried.accepted
                omitted += number * tried.omitted
        logprobs: tuple[ByteLogprob, ...] = ()
        if row.alternatives >= 0:
            logprobs = _records(buffers.logits[at:], output, row.alternatives)
        ended = buffers.ended[index] != 0
        results.append(RowResult(output, drafted, accepted, ended, logprobs, tries, omitted, times))
        at += drafted + 1
    scored = {}
    for prefill in prefills:
        logprobs = ()
        if prefill.following is not None:
            logprobs = _records(buffers.logits[at:], prefill.following, prefill.alternatives)
        scored[prefill.slot] = RowResult(b"", 0, 0, ended=False, logprobs=logprobs)
        at += len(prefill.text)
    return RoundResult(
        tuple(results),
        tuple(scored[p.slot] for p in work.prefills),
        Seconds(*buffers.seconds),
        tuple(buffers.elapsed[:rounds]),
        buffers.drafting[0],
        rounds,
    )


def native_repeats(model: NativeModel, slot: int) -> Mapping[Try, int]:
    """See `Decoder.repeats`."""
    pairs = (ctypes.c_int32 * (2 * (len(TIERS) * (LONGEST_DRAFT + 1) + 1)))()
    count = native_library().specdec_model_repeats(model.handle, slot, pairs)
    return {_tries[pairs[2 * n]]: pairs[2 * n + 1] for n in range(count)}


def _parts(prefill: Prefill) -> list[Prefill]:
    """What the drafter is not told of by itself, for the model's last block computes less of it."""
    if prefill.following is not None or prefill.watched is None:
        return [prefill]
    cut = prefill.watched - prefill.start
    if cut <= 0:
        return [prefill]
    before = replace(prefill, text=prefill.text[:cut], watched=None)
    return [before, replace(prefill, text=prefill.text[cut:], start=prefill.watched)]


def _describe(buffers: _Buffers, prefills: Sequence[Prefill]) -> bytes:
    """Writes down what prompts are consumed; returns their bytes, which the core will read."""
    buffers.round.prefills = len(prefills)
    for index, prefill in enumerate(prefills):
        buffers.prefill_slot[index], buffers.prefill_start[index] = prefill.slot, prefill.start
        buffers.prefill_size[index] = len(prefill.text)
        buffers.prefill_scored[index] = prefill.following is not None
        buffers.prefill_watched[index] = -1 if prefill.watched is None else prefill.watched
    text = b"".join(prefill.text for prefill in prefills)
    buffers.round.prompt = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p) if text else None
    return text


def _records(logits: Tensor, content: bytes, alternatives: int) -> tuple[ByteLogprob, ...]:
    """Of the first len(content) places, whose bytes are `content`."""
    chosen = torch.tensor(list(content))[None]
    found = logprobs_of(logits[None, : len(content)], chosen, alternatives)
    return found.records(0, content, alternatives)
