"""Drafts that are looked up in the text, and several rounds in a call: both are in the core alone.

Whatever is drafted, a row's bytes are those of base alone, and what is looked up is what a plain
search finds.
"""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from graph_decoders import torch_graph_decoder
from patience import PATIENCE_S, eventually
from tiny import CPU, agreeing_prophet, tiny_model, tiny_prophet

from specdec.build import Model, build_decoder
from specdec.config import LONGEST_DRAFT
from specdec.decoder import LONGEST_CHUNK, Decoder, Job, generate
from specdec.lookup import NO_LOOKUP, TIERS, Lookup
from specdec.prophet import Prophet
from specdec.round import MOST_ROUNDS, PLAIN, RowResult, Try
from specdec.sampling import SamplingParams

ADJUSTED = SamplingParams(
    temperature=0.9, top_k=40, presence_penalty=0.8, repetition_penalty=1.2, min_tokens=9
)
LOOPS = SamplingParams(temperature=0.3, logit_bias=((97, 30.0), (98, 29.0), (99, 28.0)))
"""Text of three letters, in which much is found again."""
JOBS = [
    Job(b"a", 90, SamplingParams(temperature=1.0), 1, 5),
    Job(b"ab" * 20, 80, LOOPS, 2, 16),
    Job(b"abc" * 5, 50, ADJUSTED, 3, 2, eos=b"e"[0]),
    Job(b"aabbcc" * 9, 70, LOOPS, 4, 0),
    Job(b"\0\xff", 33, ADJUSTED, 5, 0, logprobs=1),
]


def open_all(decoder: Decoder[Any], jobs: Sequence[Job]) -> None:
    for slot, job in enumerate(jobs):
        decoder.open(slot, job)
        while size := min(LONGEST_CHUNK, decoder.to_prefill(slot)):
            decoder.step({}, {slot: size})


def mixed(
    decoder: Decoder[Any], jobs: Sequence[Job], seed: int, most: int
) -> list[list[RowResult]]:
    """What each call gave each job, with other lengths, lookups and numbers of rounds each time."""
    draw = random.Random(seed)
    results: list[list[RowResult]] = [[] for _ in jobs]
    written = [0] * len(jobs)
    open_all(decoder, jobs)
    running = set(range(len(jobs)))
    while running:
        drafts = {slot: draw.randint(0, jobs[slot].draft_length) for slot in sorted(running)}
        lookups = {
            slot: tuple(draw.choice((0, 1, 3, LONGEST_DRAFT)) for _ in TIERS)
            for slot in sorted(running)
            if draw.random() < 0.7
        }
        asked = draw.randint(1, most)
        for slot, result in decoder.step(drafts, None, lookups, asked).items():
            assert len(result.rounds) <= asked
            assert sum(each.drafted for each in result.rounds) == result.drafted
            assert sum(each.accepted for each in result.rounds) == result.accepted
            whole = len(result.rounds) + result.accepted
            assert len(result.output) in (whole, whole - 1)  # one less where the last draft ends it
            results[slot].append(result)
            written[slot] += len(result.output)
            if result.ended or written[slot] == jobs[slot].max_tokens:
                running.discard(slot)
    for slot in range(len(jobs)):
        decoder.close(slot)
    return results


def native(
    prophet: Prophet | None = None,
    dtype: torch.dtype = torch.float32,
    slots: int = 5,
    context: int = 160,
) -> Decoder[Model]:
    model = tiny_model(context=context)
    return build_decoder(model, prophet, slots=slots, device=CPU, dtype=dtype, kernels="native")


@pytest.mark.parametrize("kind", ["none", "autoregressive", "parallel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_whatever_is_looked_up_the_bytes_are_those_of_base_alone(
    dtype: torch.dtype, kind: str
) -> None:
    prophet = None
    if kind != "none":
        prophet = agreeing_prophet(tiny_model(), parallel=kind == "parallel")
    decoder = native(prophet, dtype)
    alone = [generate(decoder, [replace(job, draft_length=0)], rounds=1)[0] for job in JOBS]
    jobs = JOBS if prophet else [replace(job, draft_length=0) for job in JOBS]
    looked_up = 0
    for seed in range(8):
        for plain, results in zip(alone, mixed(decoder, jobs, seed, MOST_ROUNDS), strict=True):
            assert b"".join(r.output for r in results) == b"".join(r.output for r in plain.results)
            scores = [[s for r in given for s in r.logprobs] for given in (plain.results, results)]
            assert scores[0] == scores[1]
            looked_up += sum(each.tier >= 0 for r in results for each in r.rounds)
    assert looked_up > 100


@pytest.mark.parametrize("kind", ["autoregressive", "parallel"])
def test_a_prophet_knows_of_rounds_that_it_did_not_draft_for(kind: str) -> None:
    """Behind those it drafts as on torch's operations, which tell it of each byte at once."""
    model = tiny_model()
    prophet = tiny_prophet(model, parallel=kind == "parallel")
    job = Job(b"aabbcc" * 9, 100, LOOPS, 6, 4)
    decoder = native(prophet, slots=1)
    open_all(decoder, [job])
    text = b""
    results = []
    for turn in range(12):
        lookup = (3, 3, 3, 16) if turn % 3 else NO_LOOKUP
        results.append(decoder.step({0: 4 * (turn % 3 == 0)}, None, {0: lookup}, 1 + turn % 3)[0])
    text = b"".join(result.output for result in results)
    assert any(each.tier >= 0 for result in results for each in result.rounds)
    other = build_decoder(model, prophet, slots=1, device=CPU, dtype=torch.float32, kernels="torch")
    open_all(other, [job])
    written = 0
    for turn, result in enumerate(results):
        if turn % 3 == 0:
            assert other.step({0: 4})[0] == replace(result, tries=())
            written += len(result.output)
        else:
            for _ in result.output:
                written += len(other.step({0: 0})[0].output)
    assert written == len(text)


def found(text: bytes) -> tuple[int, int]:
    """The newest place behind the same bytes as the last ones, and the tier; -1 without one."""
    for place in range(len(text) - 1, TIERS[0] - 1, -1):
        if text[:place].endswith(text[-TIERS[0] :]):
            tiers = [tier for tier, n in enumerate(TIERS) if n <= place]
            return place, max(t for t in tiers if text[:place].endswith(text[-TIERS[t] :]))
    return 0, -1


def simulated(prompt: bytes, output: bytes, lookup: Lookup) -> list[Try]:
    """What rounds try of a text that is known beforehand."""
    tries, text = [], prompt
    whole = prompt + output
    while len(text) < len(whole):
        place, tier = found(text)
        length = min(lookup[tier] if tier >= 0 else 0, len(whole) - len(text) - 1)
        drafts, accepted = text, 0
        for n in range(length):
            drafts += drafts[place + n : place + n + 1]
        while accepted < length and drafts[len(text) + accepted] == whole[len(text) + accepted]:
            accepted += 1
        tries.append(Try(length, accepted, tier if length else -1))
        text = whole[: len(text) + accepted + 1]
    return tries


def counted(prompt: bytes, results: Sequence[RowResult]) -> Counter[Try]:
    """What matches would have given, of rounds as they were: one of a tier at a time, to its first
    wrong byte or for the longest draft, if that comes before the text's end."""
    counts: Counter[Try] = Counter()
    whole = prompt + b"".join(result.output for result in results)
    size, busy = len(prompt), [0] * len(TIERS)
    for tried in (each for result in results for each in result.rounds):
        place, tier = found(whole[:size])
        if tier < 0:
            counts[PLAIN] += 1
        elif size >= busy[tier]:
            text, right = whole[:size], 0
            while (drafted := text[place + right]) == whole[size + right : size + right + 1][0]:
                text += bytes([drafted])
                right += 1
                if right == LONGEST_DRAFT or size + right == len(whole):
                    break
            ended = right == LONGEST_DRAFT or size + right < len(whole)
            busy[tier] = size + right + (right < LONGEST_DRAFT)
            counts[Try(LONGEST_DRAFT, right, tier)] += ended
        size += 1 + tried.accepted
    return +counts


@pytest.mark.parametrize("lookup", [NO_LOOKUP, (3, 0, 6, 0), (0, 0, 2, 16), (16, 0, 0, 1)])
@pytest.mark.parametrize("rounds", [1, 7, MOST_ROUNDS])
def test_what_matches_would_give_is_counted_whatever_is_drafted(
    lookup: Lookup, rounds: int
) -> None:
    decoder = native(agreeing_prophet(tiny_model()), slots=3, context=300)
    jobs = [
        Job(b"aabbcc" * 9, 200, LOOPS, 4),
        Job(b"ca", 190, LOOPS, 9, 2),
        Job(b"bcab", 180, LOOPS, 7),
    ]
    for _ in range(2):  # of who was there before nothing is left
        open_all(decoder, jobs)
        results: list[list[RowResult]] = [[], [], []]
        told: list[Counter[Try]] = [Counter(), Counter(), Counter()]
        while running := [
            slot
            for slot, job in enumerate(jobs)
            if sum(len(r.output) for r in results[slot]) < job.max_tokens
        ]:
            drafts = {slot: jobs[slot].draft_length for slot in running}
            lookups = {slot: lookup for slot in running if slot < 2}
            for slot, result in decoder.step(drafts, None, lookups, rounds).items():
                results[slot].append(result)
            for slot in running[::2]:  # asked often or once
                told[slot] += Counter(decoder.repeats(slot))
        told[1] += Counter(decoder.repeats(1))
        for slot in (0, 1):
            assert told[slot] == counted(jobs[slot].prompt, results[slot])
            assert len({tried.tier for tried in told[slot]}) > 3
        assert not told[2]  # nobody wanted to know
        assert not decoder.repeats(0)
        for slot in range(3):
            decoder.close(slot)


def test_counts_of_a_text_end_with_it() -> None:
    """A match that was followed when a row was closed is not held against the next row's bytes."""
    decoder = native(slots=2)
    same = SamplingParams(temperature=1.0, logit_bias=((97, 1000.0),))
    for _ in range(3):
        open_all(decoder, [Job(b"aaaa", 100, same)])
        decoder.step({0: 0}, None, {0: NO_LOOKUP}, 9)
        decoder.close(0)
        assert not decoder.repeats(0)
    open_all(decoder, [Job(b"bcda", 100, same)])
    decoder.step({0: 0}, None, {0: NO_LOOKUP}, 40)
    assert decoder.repeats(0) == {PLAIN: 3, Try(16, 16, 0): 1, Try(16, 16, 1): 1, Try(16, 16, 2): 1}
    decoder.step({0: 0}, None, {0: NO_LOOKUP}, 20)
    assert decoder.repeats(0) == {Try(16, 16, 3): 1}


@pytest.mark.parametrize("lookup", [(3, 4, 6, 16), (0, 0, 2, 16), (16, 0, 0, 1), (1, 16, 16, 16)])
@pytest.mark.parametrize("rounds", [1, 3, MOST_ROUNDS])
def test_what_is_looked_up_is_what_a_plain_search_finds(lookup: Lookup, rounds: int) -> None:
    decoder = native(slots=2)
    jobs = [Job(b"aabbcc" * 9, 100, LOOPS, 4), Job(b"ca", 90, LOOPS, 9)]
    open_all(decoder, jobs)
    results: list[list[RowResult]] = [[], []]
    while running := [
        slot
        for slot, job in enumerate(jobs)
        if sum(len(r.output) for r in results[slot]) < job.max_tokens
    ]:
        step = decoder.step(dict.fromkeys(running, 0), None, dict.fromkeys(running, lookup), rounds)
        for slot, result in step.items():
            results[slot].append(result)
            assert result.tally == Counter(result.rounds)
            assert result.drafted == sum(each.drafted for each in result.rounds)
            assert result.accepted == sum(each.accepted for each in result.rounds)
        them = zip(*(result.rounds for result in step.values()), strict=True)
        assert decoder.drafting == sum(any(each.wanted for each in row) for row in them)
    tiers = set()
    for job, mine in zip(jobs, results, strict=True):
        tries = [each for result in mine for each in result.rounds]
        assert tries == simulated(job.prompt, b"".join(r.output for r in mine), lookup)
        tiers |= {each.tier for each in tries}
    assert len(tiers) > 2


def test_what_a_slot_takes_over_is_looked_up_too() -> None:
    """A prompt that was copied, and one that the slot itself consumed for a row before."""
    decoder = native(slots=3)
    job = Job(b"aabbcc" * 9, 40, LOOPS, 4)
    (alone,) = generate(decoder, [job], rounds=1)
    expected = simulated(job.prompt, alone.output, (3, 3, 3, 3))
    decoder.open(1, job)
    decoder.fork(0, 1)
    decoder.open(0, job)
    decoder.fork(0, 0)
    tries: dict[int, list[Try]] = {0: [], 1: []}
    written = dict.fromkeys(tries, b"")
    while len(written[0]) < 40:
        step = decoder.step({0: 0, 1: 0}, None, {0: (3, 3, 3, 3), 1: (3, 3, 3, 3)}, 2)
        for slot, result in step.items():
            tries[slot] += result.rounds
            written[slot] += result.output
    assert written[0] == written[1] == alone.output
    assert tries[0] == tries[1] == expected
    assert any(each.accepted for each in expected)


def test_a_text_that_is_all_the_same_drafts_itself() -> None:
    decoder = native(slots=1)
    same = SamplingParams(temperature=1.0, logit_bias=((97, 1000.0),))
    open_all(decoder, [Job(b"aaaa", 100, same)])
    results = [decoder.step({0: 0}, None, {0: (16, 16, 16, 16)})[0] for _ in range(6)]
    assert [r.output for r in results] == [b"a" * 17] * 5 + [b"a" * 15]
    assert [r.rounds[0].tier for r in results] == [0, 2, 3, 3, 3, 3]


def test_several_rounds_in_a_call() -> None:
    decoder = native(slots=2, context=512)
    jobs = [Job(b"xy", 500, SamplingParams(), 1), Job(b"xyz", 5, SamplingParams(), 2)]
    expected = generate(decoder, jobs, rounds=1)
    open_all(decoder, jobs)
    step = decoder.step({0: 0, 1: 0}, None, None, 1000)
    # until one has ended
    assert [len(step[slot].rounds) for slot in (0, 1)] == [5, 5]
    assert step[1].output == expected[1].output
    step[0] = decoder.step({0: 0}, None, None, 1000)[0]
    assert step[0].output == expected[0].output[5 : 5 + MOST_ROUNDS]
    assert len(step[0].rounds) == len(decoder.elapsed) == MOST_ROUNDS
    assert sum(decoder.elapsed) == pytest.approx(sum(decoder.seconds))
    # one where log-probabilities are wanted
    decoder.close(1)
    decoder.open(1, Job(b"x", 9, SamplingParams(), logprobs=0))
    assert len(decoder.step({0: 0, 1: 0}, None, None, 8)[1].output) == 1
    assert len(decoder.elapsed) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_longest_drafts_fill_the_longest_call(temperature: float) -> None:
    decoder = native(slots=1, context=5000)
    same = SamplingParams(temperature=temperature, logit_bias=((97, 1000.0),))
    open_all(decoder, [Job(b"a" * 33, 4900, same)])
    result = decoder.step({0: 0}, None, {0: (0, 0, 0, 16)}, 1000)[0]
    assert result.rounds == (Try(16, 16, 3),) * MOST_ROUNDS
    assert result.output == b"a" * 17 * MOST_ROUNDS


def test_no_round_is_begun_after_the_span() -> None:
    decoder = native(slots=1)
    open_all(decoder, [Job(b"xy", 60)])
    assert len(decoder.step({0: 0}, None, None, 9, 1e-9)[0].output) == 1


def test_no_round_is_begun_after_an_interruption() -> None:
    decoder = native(slots=1)
    open_all(decoder, [Job(b"xy", 60)])
    decoder.interrupt.set()
    assert len(decoder.step({0: 0}, None, None, 9)[0].output) == 1
    decoder.interrupt.clear()
    assert len(decoder.step({0: 0}, None, None, 9)[0].output) == 9


def test_another_thread_interrupts_a_call() -> None:
    """In its midst, sooner or later: a moment is tried until the call is neither over by then nor
    still to begin."""
    decoder = native(slots=1, context=8000)

    def rounds_until(seconds: float) -> int:
        """Of as many as there can be, with an interruption after so long."""
        open_all(decoder, [Job(b"xy", 7000)])
        timer = threading.Timer(seconds, decoder.interrupt.set)
        timer.start()
        rounds = len(decoder.step({0: 0}, None, None, MOST_ROUNDS)[0].output)
        timer.cancel()
        timer.join()
        decoder.interrupt.clear()
        decoder.close(0)
        return rounds

    assert rounds_until(PATIENCE_S) == MOST_ROUNDS
    whole = sum(decoder.elapsed)
    moments = cycle(whole / 2**n for n in range(8))
    eventually(lambda: 1 < rounds_until(next(moments)) < MOST_ROUNDS)
    assert rounds_until(PATIENCE_S) == MOST_ROUNDS


def test_an_end_of_document_byte_ends_the_call() -> None:
    decoder = native(slots=2)
    certain = SamplingParams(logit_bias=((101, 1000.0),))
    jobs = [Job(b"a", 20, certain, eos=101), Job(b"b", 20)]
    open_all(decoder, jobs)
    step = decoder.step({0: 0, 1: 0}, None, None, 4)
    assert (step[0].output, step[0].ended, len(step[0].rounds)) == (b"e", True, 1)
    assert len(step[1].output) == 1


def test_lookups_that_cannot_be() -> None:
    decoder = native(slots=1)
    decoder.open(0, Job(b"a", 20))
    for lookup in ((1, 1, 1), (0, 0, 0, 17), (0, -1, 0, 0)):
        with pytest.raises(ValueError, match="slot 0: a lookup has 4 lengths up to 16"):
            decoder.step({0: 0}, None, {0: lookup})
    others = [
        torch_graph_decoder(tiny_model(), None, slots=1, dtype=torch.float32),
        build_decoder(
            tiny_model(), None, slots=1, device=CPU, dtype=torch.float32, kernels="torch"
        ),
    ]
    for other in others:
        other.open(0, Job(b"a", 20))
        with pytest.raises(ValueError, match="looked up by the compiled core alone"):
            other.step({0: 0}, None, {0: (1, 1, 1, 1)})
        assert len(other.step({0: 0}, None, None, 8)[0].output) == 1
