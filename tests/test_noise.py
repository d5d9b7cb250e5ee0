"""The noise: a known generator, a pure function of seed and position, Gumbel and independent."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.noise import gumbel, logarithm, philox

INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    k0, k1 = (torch.tensor(word) for word in key)
    assert tuple(philox((c0, c1, c2, c3), (k0, k1)).tolist()) == words


@given(seed=INT64, position=st.integers(0, 2**62))
def test_a_block_holds_what_each_position_gives_alone(seed: int, position: int) -> None:
    seeds = torch.tensor([seed, seed ^ 1, 0])[:, None]
    positions = position + torch.arange(3)
    block = gumbel(seeds, positions)
    assert block.shape == (3, 3, 256)
    assert torch.equal(block[0, 1], gumbel(torch.tensor(seed), torch.tensor(position + 1)))
    assert torch.isfinite(block).all()
    assert float(block.min()) > -3.61
    assert float(block.max()) < 36.8


def test_logarithms_are_off_by_two_units_in_the_last_place_at_most() -> None:
    x = torch.cat(
        (
            torch.rand(20_000, dtype=torch.float64),
            1 - torch.rand(20_000, dtype=torch.float64) * 1e-6,
            torch.rand(20_000, dtype=torch.float64) * 40,
            2.0 ** -torch.arange(1.0, 54.0, dtype=torch.float64),
            1 - 2.0 ** -torch.arange(1.0, 54.0, dtype=torch.float64),
            torch.tensor([1.0, math.sqrt(0.5), math.sqrt(2), 37.0], dtype=torch.float64),
        )
    )
    x = x[x > 0]
    exact = torch.tensor([math.log(each) for each in x.tolist()], dtype=torch.float64)
    error = (logarithm(x) - exact).abs()
    unit = torch.nextafter(exact.abs(), torch.tensor(math.inf).double()) - exact.abs()
    assert float((error / unit).max()) <= 2
    assert float(logarithm(torch.tensor([1.0]).double())) == 0


def test_seeds_positions_and_bytes_are_all_told_apart() -> None:
    seeds = torch.tensor([0, 1, 2**32, -1, 2**63 - 1])[:, None]
    positions = torch.tensor([0, 1, 2**31, 2**32, 2**40])
    values = gumbel(seeds, positions).flatten()
    assert len(values.unique()) == len(values)


def test_values_follow_the_gumbel_distribution_to_its_tail() -> None:
    values = gumbel(torch.tensor(7), torch.arange(20000)).flatten().sort().values
    count = len(values)
    uniform = torch.exp(-torch.exp(-values))
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # Kolmogorov–Smirnov: 1.95/√n is passed by chance once in a thousand
    assert float((uniform - steps).abs().max()) < 1.95 / math.sqrt(count)
    expected = count * -math.expm1(-math.exp(-10.0))
    assert abs(int((values > 10).sum()) - expected) < 5 * math.sqrt(expected)


def _chi_square(observed: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


def test_the_argmax_has_the_frequencies_of_the_softmax() -> None:
    logits = torch.linspace(0, 3, 256, dtype=torch.float64)
    trials = 200_000
    chosen = torch.cat(
        [
            (logits + gumbel(torch.tensor(seed), torch.arange(trials // 8))).argmax(-1)
            for seed in range(8)
        ]
    )
    statistic = _chi_square(chosen.bincount(minlength=256), logits.softmax(-1) * trials)
    # 255 degrees of freedom: mean 255, deviation 22.6; 330 is passed by chance once in a thousand
    assert statistic < 330


@pytest.mark.parametrize("axis", ["position", "seed"])
def test_neighbouring_choices_are_independent(axis: str) -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    count = 40_000
    index = torch.arange(count + 1)
    fixed = torch.tensor(11)
    noise = gumbel(fixed, index) if axis == "position" else gumbel(index, fixed)
    chosen = (logits + noise[:, :4]).argmax(-1)
    pairs = (chosen[:-1] * 4 + chosen[1:]).bincount(minlength=16)
    expected = torch.outer(logits.exp(), logits.exp()).flatten() * count
    # 15 degrees of freedom, once in a thousand: 37.7
    assert _chi_square(pairs, expected) < 37.7
