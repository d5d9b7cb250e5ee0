"""The acceptance formula against its definition and against drawn noise; the losses' gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.noise import gumbel
from train.acceptance import LOSSES, agreement_on, coupled_acceptance, kl, lk, total_variation


def pair(seed: int, size: int = 256, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, size, generator=generator, dtype=torch.float64) * scale
    return p.log_softmax(-1), (p + q * 0.5).log_softmax(-1)


def by_definition(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    p, q = log_p.exp(), log_q.exp()
    worst = torch.maximum(p / p[:, None], q / q[:, None])
    return float((1 / worst.sum(-1)).sum())


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.0, 0.5, 2.0, 6.0]))
def test_sorted_sums_equal_the_definition(seed: int, scale: float) -> None:
    log_p, log_q = pair(seed, scale=scale)
    assert float(coupled_acceptance(log_p, log_q)) == pytest.approx(by_definition(log_p, log_q))


def test_it_is_the_share_of_equal_choices_under_shared_noise() -> None:
    log_p, log_q = pair(3)
    noise = gumbel(torch.tensor(5), torch.arange(50_000))
    equal = ((log_p + noise).argmax(-1) == (log_q + noise).argmax(-1)).double().mean()
    assert float(equal) == pytest.approx(float(coupled_acceptance(log_p, log_q)), abs=0.01)


def test_agreement_on_a_byte_is_the_share_of_equal_choices_where_the_model_chose_it() -> None:
    log_p, log_q = pair(3)
    noise = gumbel(torch.tensor(5), torch.arange(50_000))
    ours, theirs = (log_p + noise).argmax(-1), (log_q + noise).argmax(-1)
    byte = log_p.argmax()
    chosen = ours == byte
    share = (theirs[chosen] == byte).double().mean()
    assert float(share) == pytest.approx(float(agreement_on(log_p, log_q, byte)), abs=0.01)


def test_agreements_weighed_by_the_model_are_the_acceptance() -> None:
    log_p, log_q = (x.expand(256, -1) for x in pair(4))
    byte = torch.arange(256)
    each = agreement_on(log_p, log_q, byte) * log_p[0].exp()
    assert float(each.sum()) == pytest.approx(float(coupled_acceptance(log_p[0], log_q[0])))


def test_it_is_one_for_equal_and_zero_for_disjoint_distributions() -> None:
    log_p, _ = pair(1)
    assert float(coupled_acceptance(log_p, log_p)) == pytest.approx(1.0)
    apart = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    assert float(coupled_acceptance(apart, apart.flip(-1))) == 0.0


def test_it_is_at_most_what_total_variation_allows() -> None:
    for seed in range(50):
        log_p, log_q = pair(seed)
        bound = 1 - float(total_variation(log_p, log_q))
        value = float(coupled_acceptance(log_p, log_q))
        assert bound / (2 - bound) - 1e-9 <= value <= bound + 1e-9


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_following_a_loss_brings_the_two_together(name: str) -> None:
    log_p, start = pair(2, size=32)
    scores = start.clone().requires_grad_(True)
    before = float(coupled_acceptance(log_p, start))
    optimizer = torch.optim.Adam([scores], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        LOSSES[name](log_p, scores.log_softmax(-1)).backward()
        optimizer.step()
    after = float(coupled_acceptance(log_p, scores.detach().log_softmax(-1)))
    assert after > 0.95 > before


def test_lk_goes_from_kl_to_total_variation() -> None:
    log_p, _ = pair(1)
    near = (log_p + 1e-3).log_softmax(-1)
    assert float(lk(log_p, near)) < 0.06 * 1e-3 + float(total_variation(log_p, near)) + 1e-9
    far = torch.full_like(log_p, -60.0)
    far[int(log_p.argmin())] = 0.0
    assert float(lk(log_p, far)) == pytest.approx(float(kl(log_p, far)), rel=0.1)
