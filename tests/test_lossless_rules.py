"""Equality of base and speculative decoding with a fake model, where nothing can hide.

The expected bytes come from the slow oracle, which knows no drafts, no cache and no batch.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import GUESSES, FakeDrafter, Guess, HashModel, always_right, always_wrong
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec import oracle
from specdec.decoder import Decoder, Job, generate
from specdec.sampling import SamplingParams
from specdec.torch_round import accept

CONTEXT = 96
CPU = torch.device("cpu")


def _expected(model: HashModel, job: Job) -> bytes:
    def score(text: bytes) -> oracle.Scores:
        scores: oracle.Scores = model.logits_after(list(text)).double().numpy()
        return scores

    return oracle.decode(score, job.prompt, job.max_tokens, job.params, job.seed, job.eos)


def _decoder(guess: Guess, slots: int, **shape: int) -> Decoder[HashModel]:
    model = HashModel(slots, CONTEXT, **shape)
    return Decoder(model, FakeDrafter(model, guess), slots=slots, context=CONTEXT, device=CPU)


FILTERS = {
    "none": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "penalties": {
        "presence_penalty": 1.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
    },
    "bias": {"logit_bias": ((0, -50.0), (65, 4.0))},
    "min_tokens": {"min_tokens": 6},
    "all": {
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "min_tokens": 4,
        "logit_bias": ((66, 2.0),),
    },
}

JOBS = st.builds(
    Job,
    prompt=st.binary(min_size=1, max_size=40),
    max_tokens=st.integers(1, 24),
    params=st.builds(
        lambda temperature, name: SamplingParams(temperature=temperature, **FILTERS[name]),
        st.sampled_from([0.0, 0.7, 1.0, 1.5]),
        st.sampled_from(sorted(FILTERS)),
    ),
    seed=st.integers(-(2**63), 2**63 - 1),
    draft_length=st.integers(0, 16),
    eos=st.sampled_from([None, 0, 3]),
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(jobs=st.lists(JOBS, min_size=1, max_size=8), guess=st.sampled_from(GUESSES))
def test_any_batch_with_any_drafter_gives_each_row_the_oracle_bytes(
    jobs: list[Job], guess: Guess
) -> None:
    decoder = _decoder(guess, 8)
    outputs = generate(decoder, jobs)
    for job, output in zip(jobs, outputs, strict=True):
        assert output.output == _expected(decoder.model, job)


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("guess", GUESSES, ids=lambda guess: guess.__name__)
def test_every_draft_length_gives_the_bytes_of_base(
    guess: Guess, temperature: float, name: str
) -> None:
    params = SamplingParams(temperature=temperature, **FILTERS[name])
    decoder = _decoder(guess, 8)
    for seed in range(2):
        job = Job(b"\x00prompt", 30, params, seed, eos=3)
        lengths = [0, 1, 2, 3, 5, 8, 13, 16]
        outputs = generate(decoder, [replace(job, draft_length=n) for n in lengths])
        assert len({out.output for out in outputs}) == 1
        assert outputs[0].output == _expected(decoder.model, job)


def test_a_drafter_that_is_always_right_is_always_accepted() -> None:
    decoder = _decoder(always_right, 1)
    job = Job(b"abc", 60, SamplingParams(), seed=5, draft_length=5)
    (out,) = generate(decoder, [job])
    assert out.rounds == 10
    assert out.drafted == out.accepted == 50


def test_a_drafter_that_is_always_wrong_costs_rounds_and_nothing_else() -> None:
    decoder = _decoder(always_wrong, 1)
    (out,) = generate(decoder, [Job(b"abc", 30, SamplingParams(), seed=5, draft_length=5)])
    assert out.rounds == 30
    assert out.accepted == 0


@pytest.mark.parametrize("draft_length", [0, 1, 5, 16])
@pytest.mark.parametrize("prompt", [1, CONTEXT - 1, CONTEXT - 2, CONTEXT - 17])
def test_rows_end_at_the_last_place_of_the_context(prompt: int, draft_length: int) -> None:
    decoder = _decoder(always_right, 2)
    job = Job(b"p" * prompt, CONTEXT - prompt, SamplingParams(), 9, draft_length)
    (out,) = generate(decoder, [job])
    assert len(out.output) == CONTEXT - prompt
    assert out.output == _expected(decoder.model, job)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(job=JOBS, cut=st.integers(1, 20))
def test_continuing_from_a_partial_output_gives_the_same_bytes(job: Job, cut: int) -> None:
    penalized = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    # min_tokens counts from the prompt's end, so a continued request asks for fewer
    job = replace(job, params=replace(job.params, **penalized, min_tokens=0))
    decoder = _decoder(always_right, 1)
    (whole,) = generate(decoder, [job])
    cut = min(cut, len(whole.output))
    if cut == job.max_tokens:
        return
    rest = replace(job, prompt=job.prompt + whole.output[:cut], max_tokens=job.max_tokens - cut)
    (continued,) = generate(decoder, [rest])
    assert whole.output[:cut] + continued.output == whole.output


def test_rows_that_join_and_leave_at_every_round_keep_their_bytes() -> None:
    slots = 4
    decoder = _decoder(always_right, slots)
    jobs = [
        Job(bytes([65 + i]) * (1 + i * 5 % 17), 3 + i * 7 % 20, SamplingParams(), i, i % 4 * 2)
        for i in range(20)
    ]
    waiting = list(range(len(jobs)))
    running: dict[int, int] = {}
    outputs = dict.fromkeys(waiting, b"")
    while waiting or running:
        for slot in range(slots):
            if slot not in running and waiting:
                running[slot] = waiting.pop(0)
                decoder.open(slot, jobs[running[slot]])
        chunks = {slot: min(3, decoder.to_prefill(slot)) for slot in running}
        chunks = {slot: size for slot, size in chunks.items() if size}
        drafts = {s: jobs[i].draft_length for s, i in running.items() if s not in chunks}
        for slot, result in decoder.step(drafts, chunks).items():
            index = running[slot]
            outputs[index] += result.output
            if len(outputs[index]) == jobs[index].max_tokens:
                decoder.close(slot)
                del running[slot]
    for index, job in enumerate(jobs):
        assert outputs[index] == _expected(decoder.model, job)


def test_a_draft_length_may_change_from_round_to_round() -> None:
    decoder = _decoder(always_right, 1)
    job = Job(b"start", 50, SamplingParams(), 4, draft_length=16)
    decoder.open(0, job)
    decoder.step({}, {0: 4})
    output = b""
    for turn in range(50):
        if len(output) < 50:
            output += decoder.step({0: [0, 3, 16, 1, 0, 7][turn % 6]})[0].output
    assert output == _expected(decoder.model, job)


def test_the_example_of_the_round_holds() -> None:
    """The one in `specdec.round`: d_1 = c_0 and d_2 ≠ c_1."""
    emitted = accept(
        torch.tensor([[10, 99, 30]]),
        torch.tensor([[10, 20, 30, 40]]),
        torch.tensor([100]),
        torch.tensor([-1]),
    )
    assert int(emitted.accepted) == 1
    assert emitted.tokens[0, : int(emitted.count)].tolist() == [10, 20]


@pytest.mark.parametrize(
    ("draft_length", "room", "eos", "count", "accepted", "ended"),
    [
        (4, 100, -1, 5, 4, False),  # all right: the bonus byte too
        (2, 100, -1, 3, 2, False),
        (0, 100, -1, 1, 0, False),  # none
        (4, 3, -1, 3, 3, False),  # room for three: what lies behind counts for nothing
        (4, 1, -1, 1, 1, False),
        (4, 100, 2, 3, 3, True),  # the third is the end-of-document byte
        (4, 2, 2, 2, 2, False),  # room ends before it
        (4, 100, 4, 5, 4, True),  # the bonus byte is it
    ],
)
def test_accepting_stops_at_lengths_room_and_end(
    draft_length: int, room: int, eos: int, count: int, accepted: int, ended: bool
) -> None:
    emitted = accept(
        torch.arange(draft_length)[None],
        torch.arange(draft_length + 1)[None],
        torch.tensor([room]),
        torch.tensor([eos]),
    )
    got = (int(emitted.count), int(emitted.accepted), bool(emitted.ended))
    assert got == (count, accepted, ended)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(b"", 4), "no bytes"),
        (Job(b"a", -1), "max_tokens"),
        (Job(b"a" * 90, 7), "context of 96"),
        (Job(b"a", 4, draft_length=17), "at most 16"),
    ],
)
def test_jobs_that_cannot_be_are_refused(job: Job, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _decoder(always_right, 1).open(0, job)


def test_speculating_without_a_drafter_is_refused() -> None:
    model = HashModel(1, CONTEXT)
    decoder = Decoder(model, None, slots=1, context=CONTEXT, device=CPU)
    with pytest.raises(ValueError, match="no drafter"):
        decoder.open(0, Job(b"a", 4, draft_length=1))


def test_emitted_bytes_pass_a_probability_integral_transform() -> None:
    """u = F(x-1) + v·p(x) is uniform if and only if x was drawn from p; speculative rows here."""
    decoder = _decoder(GUESSES[2], 8, vocabulary=16, spread=4, peak=2)
    model = decoder.model
    jitter = np.random.default_rng(0)
    transformed = []
    for batch in range(6):
        jobs = [Job(b"z", 90, SamplingParams(), batch * 8 + i, draft_length=4) for i in range(8)]
        for job, out in zip(jobs, generate(decoder, jobs), strict=True):
            text = list(job.prompt + out.output)
            for t in range(1, len(text)):
                p = model.logits_after(text[:t]).double().softmax(-1).numpy()
                below = p[: text[t]].sum()
                transformed.append(below + jitter.random() * p[text[t]])
    observed, _ = np.histogram(transformed, bins=20, range=(0, 1))
    expected = len(transformed) / 20
    # 19 degrees of freedom, once in a thousand: 43.8
    assert float(((observed - expected) ** 2 / expected).sum()) < 43.8
