"""Alignment: decoding computes for draft k what training computed at that place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, agreeing_prophet, tiny_decoder, tiny_model, tiny_prophet
from torch import Tensor

from specdec.build import Kernels, Model, build_decoder
from specdec.decoder import LONGEST_CHUNK, Decoder, Job
from specdec.drafter import Drafter, Following, Picker
from specdec.kinds import build_drafter
from specdec.packed import PackedModel
from specdec.prophet import Prophet
from specdec.round import RowResult
from train.objective import Aim, objective, random_starts

GAMMA = 6


class Recorder:
    """A drafter, steered: it notes its logits and drafts the bytes it is given."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter, self.longest, self.memory = drafter, drafter.longest, drafter.memory
        self.observe, self.keep, self.copy = drafter.observe, drafter.keep, drafter.copy

    def script(self, text: bytes, wrong_at: list[int]) -> None:
        self.text, self.wrong_at = text, wrong_at
        self.calls: list[tuple[int, Tensor]] = []

    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        start, logits = int(length[0]), []
        wrong = self.wrong_at.pop(0) if self.wrong_at else gamma
        text = self.text

        class Steered:
            def pick(self, step: int, scores: Tensor, following: Following | None = None) -> Tensor:
                if following:
                    scores = following.added(scores)
                logits.append(scores[0])
                byte = text[start + 1 + step] if start + 1 + step < len(text) else 0
                return torch.tensor([byte ^ (step == wrong)])

        drafts = self.drafter.draft(slots, last, length, gamma, Steered())
        # logits after a wrong draft are those of another text; training never saw that one
        self.calls.append((start, torch.stack(logits[: wrong + 1])))
        return drafts


KINDS = [{"leading": 1}, {"leading": 2}, {"leading": 4}, {"parallel": True}]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(
    prompt=st.sampled_from([1, 2, 3, 7, 30]),
    accepted=st.lists(st.integers(0, GAMMA), min_size=3, max_size=8),
)
def test_draft_logits_equal_the_training_forward(
    kind: dict[str, int], prompt: int, accepted: list[int]
) -> None:
    """For every k up to γ, after rounds that accepted 0, some and all drafts."""
    model = tiny_model().double()
    prophet = tiny_prophet(model, **kind).double()
    packed = PackedModel(model, slots=1, context=160, device=CPU, dtype=torch.float64)
    drafter = Recorder(
        build_drafter(prophet, slots=1, context=160, device=CPU, dtype=torch.float64)
    )
    decoder = Decoder(packed, drafter, slots=1, context=160, device=CPU)
    job = Job(b"q" * prompt, 90, seed=3, draft_length=GAMMA)

    plain = _decode(decoder, job, 0)
    drafter.script(job.prompt + plain, list(accepted))
    assert _decode(decoder, job, GAMMA) == plain

    text = torch.tensor(list(job.prompt + plain))[None]
    hidden = model(text)
    compared = 0
    for start, logits in drafter.calls:
        if start + GAMMA >= text.shape[1]:
            continue
        trained = prophet.at_starts(hidden, text, torch.tensor([start]), GAMMA)[0, 0]
        torch.testing.assert_close(logits, trained[: len(logits)], rtol=0, atol=1e-5)
        compared += len(logits)
    assert compared > GAMMA


def _decode(decoder: Decoder[Model], job: Job, gamma: int) -> bytes:
    decoder.open(0, job)
    while size := decoder.to_prefill(0):
        decoder.step({}, {0: min(size, LONGEST_CHUNK)})
    output = b""
    while len(output) < job.max_tokens:
        output += decoder.step({0: gamma})[0].output
    decoder.close(0)
    return output


def _objective_gradients(
    detach: bool, parallel: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, prophet = tiny_model(), tiny_prophet(tiny_model(), parallel=parallel)
    model.requires_grad_(True)
    prophet.requires_grad_(True)
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    losses = objective(model, prophet, tokens, torch.arange(30), Aim(8, detach=detach))
    losses.total.backward()
    return (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        {name: p.grad for name, p in prophet.named_parameters() if p.grad is not None},
    )


@pytest.mark.parametrize("parallel", [False, True])
def test_every_prophet_weight_is_trained_the_stand_ins_too(parallel: bool) -> None:
    _, gradients = _objective_gradients(detach=True, parallel=parallel)
    prophet = tiny_prophet(tiny_model(), parallel=parallel)
    assert set(gradients) == {name for name, _ in prophet.named_parameters()}
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients.values())


@pytest.mark.parametrize("parallel", [False, True])
def test_detaching_keeps_the_prophet_gradient_out_of_the_model(parallel: bool) -> None:
    alone = tiny_model().requires_grad_(True)
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    scores = alone.logits(alone(tokens)[:, :-1])
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    detached, _ = _objective_gradients(detach=True, parallel=parallel)
    joint, _ = _objective_gradients(detach=False, parallel=parallel)
    for name, parameter in alone.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(detached[name], parameter.grad)
    assert any(not torch.allclose(joint[name], detached[name]) for name in joint)


def test_starts_reach_from_the_first_byte_to_the_last_that_leaves_room() -> None:
    starts = random_starts(1, 2, length=40, gamma=8, share=1.0)
    assert starts.tolist() == list(range(32))
    assert torch.equal(random_starts(1, 2, 40, 8, 0.5), random_starts(1, 2, 40, 8, 0.5))
    assert not torch.equal(random_starts(1, 2, 40, 8, 0.5), random_starts(1, 3, 40, 8, 0.5))


@pytest.mark.parametrize("parallel", [False, True])
def test_a_start_without_room_for_its_targets_is_refused(parallel: bool) -> None:
    model = tiny_model()
    prophet = tiny_prophet(model, parallel=parallel)
    tokens = torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(ValueError, match="no room for 8 targets"):
        prophet.at_starts(model(tokens), tokens, torch.tensor([12]), 8)


def test_blocks_do_not_share_weights() -> None:
    prophet: Prophet = tiny_prophet(tiny_model())
    pointers = [parameter.data_ptr() for parameter in prophet.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_a_slot_taken_again_or_forked_drafts_as_a_fresh_one() -> None:
    """What a slot held before, or which one a prompt was consumed in, leaves no trace."""
    model = tiny_model()
    job = Job(b"the first of some", 60, seed=4, draft_length=GAMMA)
    for parallel in (False, True):
        prophet = agreeing_prophet(model, parallel=parallel)
        decoder = tiny_decoder(torch.float64, slots=2, model=model, prophet=prophet)
        fresh = _rounds(decoder, 0, job)
        _rounds(decoder, 1, Job(b"another text altogether", 90, seed=1, draft_length=3))
        assert _rounds(decoder, 1, job) == fresh
        decoder.open(0, job)
        decoder.open(1, job)
        decoder.step({}, {0: 9})
        decoder.fork(0, 1)
        decoder.close(0)
        assert _rest(decoder, 1, job) == fresh


def test_a_row_that_never_drafts_is_not_shown_to_the_drafter() -> None:
    model = tiny_model()
    prophet = agreeing_prophet(model, parallel=True)
    decoder = tiny_decoder(torch.float64, slots=2, model=model, prophet=prophet)
    drafting, plain = Job(b"some text", 20, draft_length=2), Job(b"some text", 20)
    seen: list[list[int]] = []
    assert decoder.drafter is not None
    inner = decoder.drafter.observe

    def observe(slots: Tensor, *rest: Tensor) -> None:
        seen.append(slots.tolist())
        inner(slots, *rest)

    decoder.drafter.observe = observe  # type: ignore[method-assign]
    decoder.open(0, plain)
    decoder.open(1, drafting)
    decoder.step({}, {0: 8, 1: 8})
    decoder.step({0: 0, 1: 0})
    decoder.step({0: 0, 1: 2})
    assert seen == [[1], [1], [1]]
    with pytest.raises(ValueError, match="slot 0 was opened to draft less than 1"):
        decoder.step({0: 1})
    decoder.close(0)
    decoder.open(0, plain)
    decoder.step({}, {0: 5})
    decoder.close(1)
    decoder.open(1, drafting)
    with pytest.raises(ValueError, match="slot 1 drafts and slot 0 did not"):
        decoder.fork(0, 1)


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_prompt_stays_in_its_slot_whatever_the_row_does(parallel: bool, kernels: Kernels) -> None:
    """Rows that take it over draft and decode as those that consume it."""
    model = tiny_model()
    prophet = agreeing_prophet(model, parallel=parallel)
    dtype = torch.float32 if kernels == "native" else torch.float64
    decoder = build_decoder(
        model, prophet, slots=2, context=128, device=CPU, dtype=dtype, kernels=kernels
    )
    job = Job(b"the first of some", 60, seed=4, draft_length=GAMMA)
    fresh = _rounds(decoder, 1, job)
    decoder.open(0, Job(job.prompt, 60, seed=9, draft_length=3))
    decoder.step({}, {0: 16})
    for _ in range(5):
        decoder.step({0: 3})
    decoder.open(1, job)
    decoder.fork(0, 1)  # from a row that decodes
    assert _rest(decoder, 1, job) == fresh
    decoder.open(1, job)
    decoder.fork(1, 1)  # from the row before
    assert _rest(decoder, 1, job) == fresh
    decoder.close(0)
    decoder.open(0, job)
    decoder.fork(1, 0)  # from one that is gone
    assert _rest(decoder, 0, job) == fresh


def _rounds(decoder: Decoder[Model], slot: int, job: Job) -> list[RowResult]:
    decoder.open(slot, job)
    return _rest(decoder, slot, job)


def _rest(decoder: Decoder[Model], slot: int, job: Job) -> list[RowResult]:
    while size := decoder.to_prefill(slot):
        decoder.step({}, {slot: size})
    results: list[RowResult] = []
    while sum(len(result.output) for result in results) < job.max_tokens:
        results.append(decoder.step({slot: job.draft_length})[slot])
    decoder.close(slot)
    assert any(result.accepted for result in results)
    return results
