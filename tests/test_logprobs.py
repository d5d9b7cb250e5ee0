"""Log-probabilities are the model's, whatever path, batch and chunks; a fork spares a prompt."""

from dataclasses import replace

import pytest
import torch
from fakes import FakeDrafter, HashModel, always_right, sometimes_right
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import agreeing_prophet, tiny_decoder, tiny_model

from specdec.decoder import Decoder, Job, Output, generate
from specdec.logprobs import ByteLogprob, logprobs_of
from specdec.sampling import SamplingParams

CPU = torch.device("cpu")
CONTEXT = 200


def fake(slots: int) -> Decoder[HashModel]:
    model = HashModel(slots, CONTEXT)
    return Decoder(
        model, FakeDrafter(model, sometimes_right), slots=slots, context=CONTEXT, device=CPU
    )


def expected(model: HashModel, text: bytes, start: int, alternatives: int) -> list[ByteLogprob]:
    """Of text[start:], each from the model's logits after the bytes before it."""
    records = []
    for index in range(start, len(text)):
        scores = model.logits_after(list(text[:index])).double().log_softmax(-1)
        order = sorted(range(256), key=lambda byte: (-float(scores[byte]), byte))
        top = tuple((byte, float(scores[byte])) for byte in order[:alternatives])
        records.append(ByteLogprob(text[index], float(scores[text[index]]), top))
    return records


def scores_of(out: Output) -> list[ByteLogprob]:
    return [item for result in out.results for item in result.logprobs]


@settings(deadline=None, max_examples=40)
@given(
    prompt=st.binary(min_size=1, max_size=20),
    temperature=st.sampled_from([0.0, 1.0]),
    wanted=st.lists(st.sampled_from([None, 0, 3, 20]), min_size=1, max_size=4),
    draft_length=st.sampled_from([0, 1, 5]),
)
def test_they_are_the_models_before_any_parameter(
    prompt: bytes, temperature: float, wanted: list[int | None], draft_length: int
) -> None:
    decoder = fake(len(wanted))
    params = SamplingParams(temperature=temperature, top_k=3, logit_bias=((65, 5.0),))
    jobs = [
        Job(prompt, 12, params, seed, draft_length, logprobs=alternatives)
        for seed, alternatives in enumerate(wanted)
    ]
    for job, out in zip(jobs, generate(decoder, jobs), strict=True):
        if job.logprobs is None:
            assert scores_of(out) == []
        else:
            text = prompt + out.output
            assert scores_of(out) == expected(decoder.model, text, len(prompt), job.logprobs)


@pytest.mark.parametrize("max_tokens", [0, 5])
@pytest.mark.parametrize("length", [1, 2, 30, 150])
def test_a_prompt_is_scored_in_chunks(length: int, max_tokens: int) -> None:
    decoder = fake(2)
    prompt = bytes((7 * i) % 256 for i in range(length))
    job = Job(prompt, max_tokens, seed=3, draft_length=3, logprobs=2, score_prompt=True)
    other = Job(b"other", 40, seed=1)
    out, beside = generate(decoder, [job, other])
    assert list(out.prompt_logprobs) == expected(decoder.model, prompt, 1, 2)
    assert len(out.output) == max_tokens
    assert beside.output == generate(decoder, [other])[0].output
    assert beside.prompt_logprobs == ()


def test_both_modes_of_a_real_model_give_the_same_bits() -> None:
    decoder = tiny_decoder(torch.float64)
    base = [
        Job(b"the same", 40, SamplingParams(temperature=t), seed, logprobs=4, score_prompt=True)
        for seed, t in enumerate((0.0, 0.7, 1.0))
    ]
    fast = [replace(job, draft_length=n) for job, n in zip(base, (1, 5, 8), strict=True)]
    alone = [generate(decoder, [job])[0] for job in base]
    together = generate(decoder, [*base, *fast])
    for one, plain, drafted in zip(alone, together[:3], together[3:], strict=True):
        assert scores_of(one) == scores_of(plain) == scores_of(drafted)
        assert one.prompt_logprobs == plain.prompt_logprobs == drafted.prompt_logprobs


def test_they_are_those_of_the_trainable_model() -> None:
    model = tiny_model()
    decoder = tiny_decoder(torch.float64, model=model)
    text = b"a text to be scored, \x00\xff and all"
    (out,) = generate(decoder, [Job(text, 0, logprobs=1, score_prompt=True)])
    double = model.double()
    with torch.no_grad():
        scores = double.logits(double(torch.tensor([list(text)])))[0].log_softmax(-1)
    assert [item.byte for item in out.prompt_logprobs] == list(text[1:])
    for index, item in enumerate(out.prompt_logprobs):
        assert item.logprob == pytest.approx(float(scores[index, text[index + 1]]), abs=1e-7)
        assert item.top[0][1] == pytest.approx(float(scores[index].max()), abs=1e-7)


def test_ties_go_to_the_lowest_byte() -> None:
    flat = logprobs_of(torch.zeros(1, 1, 256), torch.zeros(1, 1, dtype=torch.int64), 3)
    assert flat.top_bytes.tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize("draft_length", [0, 4])
def test_a_fork_decodes_what_consuming_the_prompt_would_have_given(draft_length: int) -> None:
    model = HashModel(3, CONTEXT)
    drafter = FakeDrafter(model, always_right)
    decoder = Decoder(model, drafter, slots=3, context=CONTEXT, device=CPU)
    jobs = [Job(b"one prompt for all", 20, seed=s, draft_length=draft_length) for s in range(3)]
    alone = [generate(fake(1), [job])[0].output for job in jobs]
    for slot, job in enumerate(jobs):
        decoder.open(slot, job)
    decoder.step({}, {0: 17})
    for slot in (1, 2):
        decoder.fork(0, slot)
        assert decoder.to_prefill(slot) == 0
    outputs = [b""] * 3
    while min(map(len, outputs)) < 20:
        running = {slot: draft_length for slot in range(3) if len(outputs[slot]) < 20}
        for slot, result in decoder.step(running).items():
            outputs[slot] += result.output
    assert outputs == alone


def test_a_fork_of_a_real_model_has_its_bits() -> None:
    model = tiny_model()
    decoder = tiny_decoder(torch.float64, model=model, prophet=agreeing_prophet(model))
    prompt = b"a longer prompt, consumed once, for two rows"
    jobs = [Job(prompt, 30, seed=s, draft_length=5, logprobs=0) for s in range(2)]
    alone = [generate(decoder, [job])[0] for job in jobs]
    decoder.open(5, jobs[0])
    decoder.open(2, jobs[1])
    decoder.step({}, {5: decoder.to_prefill(5)})
    decoder.fork(5, 2)
    found: dict[int, list[ByteLogprob]] = {5: [], 2: []}
    while running := {slot: 5 for slot, items in found.items() if len(items) < 30}:
        for slot, result in decoder.step(running).items():
            found[slot] += result.logprobs
    assert found[5] == scores_of(alone[0])
    assert found[2] == scores_of(alone[1])


def test_what_cannot_be_forked_is_refused() -> None:
    decoder = fake(4)
    decoder.open(0, Job(b"abc", 9))
    decoder.open(1, Job(b"abd", 9))
    decoder.open(2, Job(b"abc", 9))
    with pytest.raises(ValueError, match="slot 0 does not hold the prompt of slot 2"):
        decoder.fork(0, 2)
    decoder.step({}, {0: 2, 2: 1})
    with pytest.raises(ValueError, match="slot 0 does not hold the prompt of slot 1"):
        decoder.fork(0, 1)
    with pytest.raises(ValueError, match="slot 2 has begun by itself"):
        decoder.fork(0, 2)
    decoder.step({0: 0})
    with pytest.raises(ValueError, match="slot 0 has begun by itself"):
        decoder.fork(2, 0)
    decoder.close(0)
    decoder.open(0, Job(b"abd", 9))
    decoder.open(3, Job(b"abc", 9))
    with pytest.raises(ValueError, match="slot 0 does not hold the prompt of slot 3"):
        decoder.fork(0, 3)


def test_scoring_without_logprobs_is_refused() -> None:
    with pytest.raises(ValueError, match="needs logprobs"):
        fake(1).open(0, Job(b"abc", 0, score_prompt=True))
