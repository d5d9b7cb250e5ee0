"""Alignment: decoding computes for draft k what training computed at that place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, tiny_model, tiny_prophet
from torch import Tensor

from specdec.build import Model
from specdec.decoder import LONGEST_CHUNK, Decoder, Job
from specdec.drafter import AutoregressiveDrafter, Picker
from specdec.packed import PackedModel
from specdec.prophet import AutoregressiveProphet
from train.objective import Aim, objective, random_starts

GAMMA = 6


class Recorder(AutoregressiveDrafter):
    """The drafter itself, steered: it notes its logits and drafts the bytes it is given."""

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
            def pick(self, step: int, scores: Tensor) -> Tensor:
                logits.append(scores[0])
                byte = text[start + 1 + step] if start + 1 + step < len(text) else 0
                return torch.tensor([byte ^ (step == wrong)])

        drafts = super().draft(slots, last, length, gamma, Steered())
        # logits after a wrong draft are those of another text; training never saw that one
        self.calls.append((start, torch.stack(logits[: wrong + 1])))
        return drafts


@pytest.mark.parametrize("leading", [1, 2, 4])
@settings(max_examples=12)
@given(
    prompt=st.sampled_from([1, 2, 3, 7, 30]),
    accepted=st.lists(st.integers(0, GAMMA), min_size=3, max_size=8),
)
def test_draft_logits_equal_the_training_forward(
    leading: int, prompt: int, accepted: list[int]
) -> None:
    """For every k up to γ, after rounds that accepted 0, some and all drafts."""
    model = tiny_model().double()
    prophet = tiny_prophet(model, leading=leading).double()
    packed = PackedModel(model, slots=1, context=160, device=CPU, dtype=torch.float64)
    drafter = Recorder(prophet, slots=1, device=CPU, dtype=torch.float64)
    decoder = Decoder(packed, drafter, slots=1, context=160, device=CPU)
    job = Job(b"q" * prompt, 90, seed=3)

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


def _objective_gradients(detach: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, prophet = tiny_model(), tiny_prophet(tiny_model())
    model.requires_grad_(True)
    prophet.requires_grad_(True)
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    losses = objective(model, prophet, tokens, torch.arange(30), Aim(8, detach=detach))
    losses.total.backward()
    return (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        {name: p.grad for name, p in prophet.named_parameters() if p.grad is not None},
    )


def test_every_prophet_weight_is_trained_the_stand_ins_too() -> None:
    _, gradients = _objective_gradients(detach=True)
    assert set(gradients) == {name for name, _ in tiny_prophet(tiny_model()).named_parameters()}
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients.values())


def test_detaching_keeps_the_prophet_gradient_out_of_the_model() -> None:
    alone = tiny_model().requires_grad_(True)
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    scores = alone.logits(alone(tokens)[:, :-1])
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    detached, _ = _objective_gradients(detach=True)
    joint, _ = _objective_gradients(detach=False)
    for name, parameter in alone.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(detached[name], parameter.grad)
    assert any(not torch.allclose(joint[name], detached[name]) for name in joint)


def test_starts_reach_from_the_first_byte_to_the_last_that_leaves_room() -> None:
    starts = random_starts(1, 2, length=40, gamma=8, share=1.0)
    assert starts.tolist() == list(range(32))
    assert torch.equal(random_starts(1, 2, 40, 8, 0.5), random_starts(1, 2, 40, 8, 0.5))
    assert not torch.equal(random_starts(1, 2, 40, 8, 0.5), random_starts(1, 3, 40, 8, 0.5))


def test_a_start_without_room_for_its_targets_is_refused() -> None:
    model = tiny_model()
    prophet = tiny_prophet(model)
    tokens = torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(ValueError, match="no room for 8 targets"):
        prophet.at_starts(model(tokens), tokens, torch.tensor([12]), 8)


def test_blocks_do_not_share_weights() -> None:
    prophet: AutoregressiveProphet = tiny_prophet(tiny_model())
    pointers = [parameter.data_ptr() for parameter in prophet.parameters()]
    assert len(set(pointers)) == len(pointers)
