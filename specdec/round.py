"""One round: draft, one pass of the model, accept, advance.  Only `SlotState` changes, and what
the model and the drafter keep for each slot; nothing is read on the host.

A committed row is x_0..x_m with m in the cache still to come.  The pass consumes x_m, d_1..d_γ;
its output i is judged by the byte rule at index m+1+i.  A draft is kept while it equals the
model's own choice, so the bytes that a round emits are those of plain decoding:

    drafts    d_1  d_2  d_3              d_1 = c_0, d_2 ≠ c_1: one draft accepted,
    choices   c_0  c_1  c_2  c_3         two bytes emitted, c_0 and c_1

c rows of a group, γ drafts, W = γ + 1 rows verified for each.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.attention import Groups
from specdec.config import VOCAB_SIZE
from specdec.drafter import Drafter
from specdec.logprobs import Logprobs, logprobs_of
from specdec.rule import Group, RuleOf, TorchRule
from specdec.state import SlotState


class SlotModel(Protocol):
    """A model that decodes slots: `specdec.packed.PackedModel`, or a fake in tests."""

    def forward(
        self, tokens: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]: ...

    def copy(self, source: int, target: int, places: int) -> None: ...


@dataclass(frozen=True)
class Prefill:
    """Prompt bytes [w] that one slot consumes from index `start` on; nothing is sampled.

    `following` [w] are the prompt's bytes one further, if their log-probabilities are wanted.
    The drafter is told if the row is `watched`.
    """

    slot: Tensor
    tokens: Tensor
    start: int
    following: Tensor | None = None
    alternatives: int = 0
    watched: bool = True


@dataclass(frozen=True)
class Shapes:
    """What the rows of one round do."""

    groups: tuple[Group, ...] = ()
    prefills: tuple[Prefill, ...] = ()


@dataclass(frozen=True)
class Emitted:
    """What a group's rows got: bytes [c, W], of which the first count [c] hold.

    accepted [c] counts the drafts among them, ended [c] tells that the last is the
    end-of-document byte.
    """

    tokens: Tensor
    count: Tensor
    accepted: Tensor
    ended: Tensor
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class RoundOutput:
    """What each of the groups emitted, and the log-probabilities [1, w] of each scored prefill."""

    groups: tuple[Emitted, ...]
    prefills: tuple[Logprobs | None, ...]


def accept(
    drafts: Tensor, chosen: Tensor, draft_length: Tensor, room: Tensor, eos: Tensor
) -> Emitted:
    """Compares drafts [c, γ] with the model's choices [c, γ+1].

    room [c] ≥ 1 is how many bytes the row may still emit, eos [c] its last byte or -1.
    """
    width = chosen.shape[1]
    if width == 1:  # nothing was drafted, and there is room for a byte
        none = torch.zeros_like(eos)
        return Emitted(chosen, none + 1, none, chosen[:, 0] == eos)
    places = torch.arange(width, device=chosen.device)
    kept = (drafts == chosen[:, :-1]) & (places[:-1] < draft_length[:, None])
    agreed = kept.cumprod(1).sum(1)
    count = torch.minimum(agreed + 1, room)
    is_end = (chosen == eos[:, None]) & (places < count[:, None])
    ended = is_end.any(1)
    count = torch.where(ended, is_end.int().argmax(1) + 1, count)
    return Emitted(chosen, count, torch.minimum(agreed, count), ended)


@torch.no_grad()
def run_round(
    model: SlotModel,
    drafter: Drafter | None,
    state: SlotState,
    shapes: Shapes,
    rule_of: RuleOf = TorchRule,
) -> RoundOutput:
    """Runs one round of `shapes`."""
    rules = [rule_of(state, group) for group in shapes.groups]
    tokens, slots, position = [], [], []
    drafted = []
    for rule, group in zip(rules, shapes.groups, strict=True):
        last = state.last[group.slots]
        drafts = last.new_zeros(len(last), 0)
        if group.width > 1:
            assert drafter is not None
            drafts = drafter.draft(group.slots, last, rule.length, group.width - 1, rule)
        drafted.append(drafts)
        tokens.append(torch.cat((last[:, None], drafts), 1).flatten())
        slots.append(group.slots.repeat_interleave(group.width))
        ahead = torch.arange(group.width, device=last.device)
        position.append((rule.length[:, None] + ahead).flatten())
    for prefill in shapes.prefills:
        tokens.append(prefill.tokens)
        slots.append(prefill.slot.expand(len(prefill.tokens)))
        stop = prefill.start + len(prefill.tokens)
        position.append(torch.arange(prefill.start, stop, device=prefill.tokens.device))
    widths = [(len(group.slots), group.width) for group in shapes.groups]
    widths += [(1, len(prefill.tokens)) for prefill in shapes.prefills]
    place = torch.cat(position)
    hidden, logits = model.forward(torch.cat(tokens), torch.cat(slots), place, place, tuple(widths))

    emitted: list[Emitted] = []
    row = 0
    for rule, group, drafts in zip(rules, shapes.groups, drafted, strict=True):
        rows = slice(row, row + drafts.shape[0] * group.width)
        row = rows.stop
        judged = logits[rows].unflatten(0, (-1, group.width))
        chosen = rule.judge(judged, drafts)
        result = accept(
            drafts,
            chosen,
            state.draft_length[group.slots],
            state.end[group.slots] - rule.length - 1,
            rule.eos,
        )
        _advance(state, group, rule.length, result)
        if drafter is not None and group.watched:
            watched = slice(group.watched)
            drafter.observe(
                group.slots[watched],
                rule.length[watched],
                hidden[rows].unflatten(0, (-1, group.width))[watched],
                tokens[len(emitted)].view(-1, group.width)[watched],
                result.count[watched],
            )
        if group.alternatives >= 0:
            result = replace(result, logprobs=logprobs_of(judged, chosen, group.alternatives))
        emitted.append(result)
    scored: list[Logprobs | None] = []
    for prefill in shapes.prefills:
        width = len(prefill.tokens)
        rows = slice(row, row + width)
        row = rows.stop
        scored.append(None)
        if prefill.following is not None:
            scored[-1] = logprobs_of(
                logits[rows][None], prefill.following[None], prefill.alternatives
            )
        if drafter is not None and prefill.watched:
            start, advance = (prefill.slot.new_full((1,), n) for n in (prefill.start, width))
            drafter.observe(prefill.slot, start, hidden[rows][None], prefill.tokens[None], advance)
    return RoundOutput(tuple(emitted), tuple(scored))


def _advance(state: SlotState, group: Group, length: Tensor, result: Emitted) -> None:
    state.length[group.slots] = length + result.count
    state.last[group.slots] = result.tokens.gather(1, result.count[:, None] - 1)[:, 0]
    if group.features.adjusted:
        places = torch.arange(group.width, device=length.device)
        held = (places < result.count[:, None])[..., None]
        state.counts[group.slots] += (F.one_hot(result.tokens, VOCAB_SIZE) * held).sum(1)
