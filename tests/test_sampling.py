"""The byte rule against its slow statement, and each of its parts by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specdec import oracle
from specdec.noise import gumbel
from specdec.sampling import Features, SamplingParams, SamplingRows, choose, process

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 0.7, 1.0, 1.5, 20.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 26, 255, 256]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    min_tokens=st.sampled_from([0, 1, 5]),
    logit_bias=st.sampled_from([(), ((10, 100.0),), ((0, -100.0), (255, 3.0)), ((7, -math.inf),)]),
)


def _logits(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "integers":  # many ties
        return torch.randint(-3, 4, (256,), generator=generator).float()
    return torch.randn(256, generator=generator) * (8 if kind == "peaked" else 1)


def _choose_alone(
    logits: torch.Tensor, output: bytes, params: SamplingParams, seed: int, position: int, eos: int
) -> int:
    rows = SamplingRows.neutral(1, torch.device("cpu"))
    rows.set(0, params, eos, position - len(output))
    counts = torch.tensor(list(output), dtype=torch.int64).bincount(minlength=256)[None]
    noise = gumbel(torch.tensor([seed]), torch.tensor([position]))
    place = torch.tensor([position])
    return int(choose(logits[None], rows, counts, place, noise, params.features))


@settings(max_examples=400)
@example(
    kind="integers",
    params=SamplingParams(temperature=1e-6, top_p=0.5),
    output=bytes(4),
    seed=177540691,
    eos=0,
)
@given(
    kind=st.sampled_from(["integers", "flat", "peaked"]),
    params=PARAMS,
    output=st.binary(max_size=8),
    seed=st.integers(-(2**63), 2**63 - 1),
    eos=st.sampled_from([0, 10, 255]),
)
def test_the_rule_equals_the_oracle(
    kind: str, params: SamplingParams, output: bytes, seed: int, eos: int
) -> None:
    logits = _logits(kind, seed % 1000)
    position = 40 + len(output)
    expected = oracle.choose_row(logits.numpy(), output, params, seed, position, eos)
    assert _choose_alone(logits, output, params, seed, position, eos) == expected


@settings(max_examples=60)
@given(params=st.lists(PARAMS, min_size=2, max_size=8), seed=st.integers(0, 1000))
def test_a_row_has_the_same_bits_in_any_company(params: list[SamplingParams], seed: int) -> None:
    count = len(params)
    rows = SamplingRows.neutral(count, torch.device("cpu"))
    features = Features()
    for index, item in enumerate(params):
        rows.set(index, item, 0, 4)
        features |= item.features
    logits = torch.stack([_logits("peaked", seed + i) for i in range(count)])
    counts = torch.randint(0, 3, (count, 256), generator=torch.Generator().manual_seed(seed))
    position = torch.full((count,), 6)
    together = process(logits, rows, counts, position, features)
    for index, item in enumerate(params):
        one = torch.tensor([index])
        alone = process(logits[one], rows.take(one), counts[one], position[one], item.features)
        assert torch.equal(together[index], alone[0])


def test_ties_go_to_the_lowest_byte() -> None:
    logits = torch.zeros(256)
    logits[[9, 77, 200]] = 5.0
    greedy = SamplingParams(temperature=0)
    assert _choose_alone(logits, b"", greedy, 1, 5, 0) == 9
    top_p = SamplingParams(temperature=1, top_p=1e-9)
    assert {_choose_alone(logits, b"", top_p, seed, 5, 0) for seed in range(50)} == {9}


@pytest.mark.parametrize("tied", range(1, 21))
def test_top_p_counts_ties_exactly(tied: int) -> None:
    """Whether half of six equal bytes is enough must not hang on how thirds are rounded."""
    logits = torch.full((256,), -50.0)
    logits[10 : 10 + tied] = 3.0
    rows = SamplingRows.neutral(1, torch.device("cpu"))
    for top_p in (0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9):
        params = SamplingParams(temperature=1e-3, top_p=top_p)
        rows.set(0, params, None, 1)
        scores = process(
            logits[None], rows, torch.zeros(1, 256), torch.tensor([1]), params.features
        )
        expected = list(range(10, 10 + math.ceil(top_p * tied)))
        assert scores[0].isfinite().nonzero()[:, 0].tolist() == expected
        slow = oracle.process_row(logits.numpy(), b"", params, None)
        assert np.isfinite(slow).nonzero()[0].tolist() == expected


def test_top_k_keeps_ties_at_its_threshold() -> None:
    logits = torch.zeros(256)
    logits[[9, 77, 200]] = 5.0
    params = SamplingParams(temperature=1, top_k=2)
    assert {_choose_alone(logits, b"", params, s, 5, 0) for s in range(200)} == {9, 77, 200}


def test_min_tokens_bans_only_the_end_of_document_byte_and_only_until_then() -> None:
    logits = torch.zeros(256)
    logits[0] = 50.0
    params = SamplingParams(temperature=0, min_tokens=3)
    assert [_choose_alone(logits, b"x" * n, params, 1, 9 + n, 0) for n in range(5)] == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_penalties_count_what_was_emitted() -> None:
    logits = torch.zeros(256)
    logits[65], logits[66] = 2.0, 1.5
    for params in (
        SamplingParams(temperature=0, presence_penalty=1.0),
        SamplingParams(temperature=0, frequency_penalty=1.0),
        SamplingParams(temperature=0, repetition_penalty=2.0),
    ):
        assert _choose_alone(logits, b"", params, 1, 5, 0) == 65
        assert _choose_alone(logits, b"A", params, 1, 6, 0) == 66


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = _logits("flat", 3) * 1e4
    params = SamplingParams(temperature=1e-300)
    rows = SamplingRows.neutral(1, torch.device("cpu"))
    rows.set(0, params, None, 1)
    scores = process(logits[None], rows, torch.zeros(1, 256), torch.tensor([1]), params.features)
    assert not scores.isnan().any()
    assert int(scores.argmax()) == int(logits.argmax())


def test_exhaustive_frequencies_on_three_letters() -> None:
    """Two letters in a row from an alphabet of three: all nine texts, against their exact odds."""
    table = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]])
    trials = 30_000
    seeds = torch.arange(trials)
    rows = SamplingRows.neutral(trials, torch.device("cpu"))
    rows.temperature[:] = 1.0
    counts = torch.zeros(trials, 256, dtype=torch.int64)
    features = Features(sampled=True)

    def draw(probability: torch.Tensor, position: int) -> torch.Tensor:
        logits = torch.full((trials, 256), -math.inf)
        logits[:, :3] = probability.log()
        place = torch.full((trials,), position)
        return choose(logits, rows, counts, place, gumbel(seeds, place), features)

    first = draw(table[0].expand(trials, 3), 1)
    second = draw(table[first], 2)
    observed = (first * 3 + second).bincount(minlength=9)
    expected = (table[0, :, None] * table).flatten() * trials
    assert observed.sum() == trials
    # 8 degrees of freedom, once in a thousand: 26.1
    assert float(((observed - expected) ** 2 / expected).sum()) < 26.1


def test_neutral_parameters_need_nothing_but_the_logits() -> None:
    assert SamplingParams(temperature=0).features == Features()
    assert SamplingParams().features == Features(sampled=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_k", 257),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("min_tokens", -1),
        ("logit_bias", ((256, 1.0),)),
        ("logit_bias", ((1, math.inf),)),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", tuple((b, -math.inf) for b in range(256))),
    ],
)
def test_impossible_parameters_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(SamplingParams(), **{field: value})


def test_the_oracle_shares_the_softmax_with_nobody() -> None:
    logits = np.zeros(256)
    logits[5] = math.log(3.0)
    scores = oracle.process_row(logits, b"", SamplingParams(), None)
    assert math.isclose(float(np.exp(scores).sum()), 1.0)
    assert math.isclose(float(scores[5]), math.log(3 / 258))
