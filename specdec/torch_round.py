"""A round on torch's operations, for any device: rows of one draft length go through it together.

Nothing is read on the host before the end.

c rows of a group, γ drafts, W = γ + 1 rows verified for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from specdec.drafter import Drafter
from specdec.logprobs import ByteLogprob, Logprobs, logprobs_of
from specdec.round import Decode, Prefill, Round, RoundResult, RowResult, Seconds, SlotModel
from specdec.rule import Group, TorchRule, marked
from specdec.sampling import Features
from specdec.state import SlotState
from specdec.stopwatch import Stopwatch


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


def accept(drafts: Tensor, chosen: Tensor, room: Tensor, eos: Tensor) -> Emitted:
    """Compares drafts [c, γ] with the model's choices [c, γ+1].

    room [c] ≥ 1 is how many bytes the row may still emit, eos [c] its last byte or -1.
    """
    width = chosen.shape[1]
    if width == 1:  # nothing was drafted, and there is room for a byte unless nobody will look
        none = torch.zeros_like(eos)
        return Emitted(chosen, none + 1, none, chosen[:, 0] == eos)
    places = torch.arange(width, device=chosen.device)
    agreed = (drafts == chosen[:, :-1]).cumprod(1).sum(1)
    count = torch.minimum(agreed + 1, room)
    is_end = (chosen == eos[:, None]) & (places < count[:, None])
    ended = is_end.any(1)
    count = torch.where(ended, is_end.int().argmax(1) + 1, count)
    return Emitted(chosen, count, torch.minimum(agreed, count), ended)


@torch.no_grad()
def run_round(
    model: SlotModel, drafter: Drafter | None, state: SlotState, work: Round
) -> RoundResult:
    """See `specdec.round.RunRound`."""
    watch = Stopwatch(state.device)
    # those that are watched first in each group: the drafter takes a slice
    ordered = sorted(work.decodes, key=lambda row: (row.drafts, not row.watched))
    members = [list(rows) for _, rows in groupby(ordered, key=lambda row: row.drafts)]
    rules = [TorchRule(state, _group(state, rows)) for rows in members]
    tokens, slots, position = [], [], []
    drafted = []
    for rule in rules:
        group = rule.group
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
    watch.lap()
    for prefill in work.prefills:
        text = _sent(list(prefill.text), state.device)
        tokens.append(text)
        slots.append(torch.full_like(text, prefill.slot))
        position.append(prefill.start + torch.arange(len(text), device=state.device))
    widths = [(len(rule.group.slots), rule.group.width) for rule in rules]
    widths += [(1, len(prefill.text)) for prefill in work.prefills]
    place = torch.cat(position)
    hidden, logits = model.forward(torch.cat(tokens), torch.cat(slots), place, place, tuple(widths))
    watch.lap()

    emitted: list[Emitted] = []
    row = 0
    for rule, drafts in zip(rules, drafted, strict=True):
        group = rule.group
        rows = slice(row, row + drafts.shape[0] * group.width)
        row = rows.stop
        judged = logits[rows].unflatten(0, (-1, group.width))
        chosen = rule.judge(judged, drafts)
        room = state.end[group.slots] - rule.length - 1
        result = accept(drafts, chosen, room, rule.eos)
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
    for index, prefill in enumerate(work.prefills):
        consumed = tokens[len(rules) + index]
        rows = slice(row, row + len(consumed))
        row = rows.stop
        scored.append(None)
        if prefill.following is not None:
            following = _sent(list(prefill.following), logits.device)
            scored[-1] = logprobs_of(logits[rows][None], following[None], prefill.alternatives)
        if drafter is not None and prefill.watched is not None:
            slot, start, advance = (
                consumed.new_full((1,), n) for n in (prefill.slot, prefill.start, len(consumed))
            )
            drafter.observe(slot, start, hidden[rows][None], consumed[None], advance)
    watch.lap()
    results: dict[int, RowResult] = {}
    for rows_of, group_result in zip(members, emitted, strict=True):
        results.update(_results(rows_of, group_result))
    return RoundResult(
        tuple(results[row.slot] for row in work.decodes),
        tuple(_scored(*pair) for pair in zip(work.prefills, scored, strict=True)),
        Seconds(*watch.laps()),
        drafting=int(any(row.drafts for row in work.decodes)),
    )


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    """A copy from pinned memory does not wait for the rounds before it."""
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _group(state: SlotState, rows: Sequence[Decode]) -> Group:
    features = Features()
    for row in rows:
        features |= row.features
    return Group(
        slots=torch.tensor([row.slot for row in rows], device=state.device),
        width=rows[0].drafts + 1,
        features=features,
        alternatives=max(row.alternatives for row in rows),
        watched=sum(row.watched for row in rows),
    )


def _scored(prefill: Prefill, logprobs: Logprobs | None) -> RowResult:
    records: tuple[ByteLogprob, ...] = ()
    if logprobs is not None and prefill.following is not None:
        records = logprobs.records(0, prefill.following, prefill.alternatives)
    return RowResult(b"", 0, 0, ended=False, logprobs=records)


def _results(rows: Sequence[Decode], emitted: Emitted) -> dict[int, RowResult]:
    figures = zip(
        rows,
        emitted.tokens.tolist(),
        emitted.count.tolist(),
        emitted.accepted.tolist(),
        emitted.ended.tolist(),
        strict=True,
    )
    results = {}
    for index, (row, tokens, count, accepted, ended) in enumerate(figures):
        output = bytes(tokens[:count])
        logprobs: tuple[ByteLogprob, ...] = ()
        if emitted.logprobs is not None and row.alternatives >= 0:
            logprobs = emitted.logprobs.records(index, output, row.alternatives)
        results[row.slot] = RowResult(output, row.drafts, accepted, ended, logprobs)
    return results


def _advance(state: SlotState, group: Group, length: Tensor, result: Emitted) -> None:
    state.length[group.slots] = length + result.count
    state.last[group.slots] = result.tokens.gather(1, result.count[:, None] - 1)[:, 0]
    if group.features.adjusted:
        places = torch.arange(group.width, device=length.device)
        held = (places < result.count[:, None])[..., None]
        state.counts[group.slots] += (marked(result.tokens) * held).sum(1)
