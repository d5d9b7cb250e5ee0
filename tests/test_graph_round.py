"""Rounds as CUDA graphs capture them, on the CPU: the bytes of base, whatever shares a bucket.

The function that is captured runs here uncaptured.  That it could be captured is tested as well: it
reads nothing on the host, and what it does does not depend on what its tensors hold.
"""

import sys
import sysconfig
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fakes import GUESSES, Guess, always_right, sometimes_right
from graph_decoders import LENGTHS, fake_graph_decoder, run_ahead, torch_graph_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_lossless_model import FILTERS, _jobs
from test_lossless_rules import JOBS, _expected
from tiny import CPU, agreeing_prophet, tiny_decoder, tiny_model, tiny_prophet
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specdec import graph_round, oracle
from specdec.build import build_decoder, runs_on_graphs, spare_slots
from specdec.bursts import MOST_BURST, Bursts
from specdec.decoder import Job, generate
from specdec.graph_round import Arrivals, GraphRounds, Work, row_buckets
from specdec.sampling import SamplingParams
from specdec.static_round import Shape


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(JOBS, min_size=1, max_size=7),
    guess=st.sampled_from(GUESSES),
    burst=st.integers(0, 16),
)
def test_any_batch_gives_each_row_the_oracle_bytes(
    jobs: list[Job], guess: Guess, burst: int
) -> None:
    decoder = fake_graph_decoder(guess, 7)
    outputs = generate(decoder, jobs)
    run_ahead(decoder, burst)
    for job, one, output in zip(jobs, outputs, generate(decoder, jobs), strict=True):
        assert output.output == one.output == _expected(decoder.model, job)
        assert (output.ended, output.rounds) == (one.ended, one.rounds)
        assert (output.drafted, output.accepted) == (one.drafted, one.accepted)


@pytest.mark.parametrize("slots", [1, 3, 4])
def test_rows_that_join_and_leave_change_buckets_and_keep_their_bytes(slots: int) -> None:
    decoder = fake_graph_decoder(sometimes_right, slots)
    jobs = [
        Job(
            bytes([65 + i]) * (1 + i * 5 % 17),
            3 + i * 7 % 20,
            SamplingParams(temperature=i % 3 / 2, presence_penalty=i % 2),
            i,
            i % 4 * 2,
        )
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


def test_a_round_is_as_wide_as_its_widest_row_and_plain_where_nobody_drafts() -> None:
    decoder = fake_graph_decoder(always_right, 6)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    job = Job(b"a", 60, SamplingParams(), draft_length=16)
    for slot in range(5):
        decoder.open(slot, replace(job, draft_length=0 if slot == 3 else 16))
    for drafts, groups in (
        ({3: 0}, (1, 1)),
        ({0: 0}, (1, 1)),
        ({0: 2}, (1, 3)),
        ({0: 1, 1: 4, 3: 0}, (4, 6)),  # three rows of a bucket of four, five drafts at most
        ({0: 0, 1: 0, 2: 0, 3: 0, 4: 0}, (6, 1)),
    ):
        results = decoder.step(drafts)
        assert decoder.model.seen_groups[-1] == (groups,)
        assert {slot: result.drafted for slot, result in results.items()} == drafts
        assert {slot: result.accepted for slot, result in results.items()} == drafts


def test_a_round_may_be_begun_before_the_one_before_it_is_read() -> None:
    """More than that it may not: what the first gave is read before the third is begun."""
    job = Job(b"abc", 60, SamplingParams(temperature=1.0), seed=1, draft_length=4)
    decoder = fake_graph_decoder(sometimes_right, 2)
    (expected,) = generate(decoder, [job], rounds=1)
    decoder.open(0, job)
    decoder.step({}, {0: 2})
    reads = [decoder.begin({0: 4}) for _ in range(6)]
    rounds = [read()[0] for read in reads]
    assert [r.output for r in rounds] == [r.output for r in expected.results[:6]]
    assert len({len(r.output) for r in rounds}) > 1


def test_a_call_of_several_rounds_ends_for_who_arrives_and_with_its_last_row() -> None:
    decoder = fake_graph_decoder(sometimes_right, 2)
    run_ahead(decoder, 6)
    for slot, size in enumerate((9, 14)):
        decoder.open(slot, Job(b"a", size, SamplingParams(), slot))
    plain = {0: 0, 1: 0}
    assert decoder.begin(plain, rounds=4).rounds == 4
    second = decoder.begin(plain, rounds=256)
    assert second.rounds == 6
    # the first row is sure to end in what has begun
    third = decoder.begin(plain, rounds=256)
    assert third.rounds == 14 - 10
    results = second()
    assert [len(results[slot].output) for slot in plain] == [5, 6]
    assert [len(results[slot].rounds) for slot in plain] == [5, 6]
    results = third()
    assert [len(results[slot].output) for slot in plain] == [0, 4]
    for slot in plain:
        decoder.close(slot)
        decoder.open(slot, Job(b"a", 20, SamplingParams(), slot))
    decoder.interrupt.set()
    assert decoder.begin(plain, rounds=256).rounds == 1
    decoder.interrupt.clear()
    assert decoder.begin(plain, rounds=256).rounds == 6


def test_calls_have_as_many_rounds_as_take_about_as_long_as_the_host() -> None:
    bursts = Bursts()
    assert bursts.rounds(1e-3, 1.0) == 1
    for _ in range(100):
        bursts.observe(4e-3)
        bursts.observe(9.0)  # nobody was there
    assert bursts.rounds(None, 1.0) == 1
    assert bursts.rounds(1e-3, 1.0) == 5
    assert bursts.rounds(5e-3, 1.0) == 1
    assert bursts.rounds(1e-3, 3.5e-3) == 3
    assert bursts.rounds(1e-3, 1e-4) == 1
    assert bursts.rounds(1e-9, 1.0) == MOST_BURST
    for _ in range(100):
        bursts.observe(1e-3)
    assert bursts.rounds(1e-3, 1.0) == 2


def test_what_the_host_takes_is_told_apart_from_what_it_waits_for() -> None:
    """Where prompts are consumed or a graph is captured the host takes longer than for its rows."""
    decoder = fake_graph_decoder(sometimes_right, 2)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    seen: list[float] = []

    class Watching(Bursts):
        def observe(self, host_s: float) -> None:
            seen.append(host_s)

    rounds._bursts = defaultdict(Watching)
    for slot in range(2):
        decoder.open(slot, Job(b"abc", 60, SamplingParams(), slot))
    decoder.step({}, {0: 2})
    decoder.step({0: 0})  # its shape is new
    assert not seen
    for turn in range(3):
        begun = decoder.begin({0: 0})
        time.sleep(0.005)
        begun()
        assert len(seen) == turn
    assert min(seen) > 0.004
    decoder.step({0: 0}, {1: 2})
    decoder.step({0: 0})
    assert len(seen) == 3


def test_what_a_round_takes_is_told_as_one_piece() -> None:
    decoder = fake_graph_decoder(sometimes_right, 2)
    decoder.open(0, Job(b"abc", 60, SamplingParams(), draft_length=4))
    decoder.step({}, {0: 2})
    decoder.step({0: 4})
    draft, verify, accept = decoder.seconds
    assert (draft, accept) == (0, 0)
    assert verify > 0


def test_drafts_beyond_a_row_s_end_are_not_counted() -> None:
    decoder = fake_graph_decoder(always_right, 1)
    decoder.open(0, Job(b"a", 8, SamplingParams(), draft_length=4))
    reads = [decoder.begin({0: 4}) for _ in range(3)]
    rounds = [read()[0] for read in reads]
    assert [(len(r.output), r.drafted, r.accepted) for r in rounds[:2]] == [(5, 4, 4), (3, 2, 2)]
    assert (rounds[2].drafted, rounds[2].accepted) == (0, 0)


def test_the_twins_of_inputs_and_results_take_turns() -> None:
    decoder = fake_graph_decoder(sometimes_right, 2)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    for slot in range(2):
        decoder.open(slot, Job(b"a", 60, SamplingParams(), slot, 2))
    seen = []
    for drafts in ({0: 2}, {1: 2}, {0: 2}):
        decoder.begin(drafts)
        seen.append(rounds._inputs[1]._host.data_ptr())
    assert seen[0] == seen[2] != seen[1]
    arrivals = Arrivals()
    sent = []
    for numbers in ((1, 2), (3,)):
        for at, number in enumerate(numbers):
            arrivals.expect(torch.full((1, 4), number), at)
        sent.append(arrivals.sent(len(numbers)))
    assert [each.numbers().tolist() for each in sent] == [[[[1] * 4], [[2] * 4]], [[[3] * 4]]]


def test_the_shapes_are_all_that_rounds_may_have() -> None:
    decoder = fake_graph_decoder(always_right, 6)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    assert row_buckets(6) == [1, 2, 4, 6]
    assert row_buckets(1) == [1]
    shapes = rounds.shapes()
    assert len(shapes) == len(set(shapes)) == 4 * (len(LENGTHS) + 2)
    assert shapes[:3] == [Shape(1, 0, False), Shape(1, 0, True), Shape(1, 1, True)]


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("parallel", [False, True])
def test_real_models_equal_the_oracle(parallel: bool, temperature: float, name: str) -> None:
    model = tiny_model().double()
    decoder = torch_graph_decoder(model, agreeing_prophet(model, parallel=parallel))
    run_ahead(decoder, 3 * parallel)
    jobs = _jobs(replace(FILTERS[name], temperature=temperature), range(8), 40)
    score = oracle.scores_of(model)
    for job, out in zip(jobs, generate(decoder, jobs), strict=True):
        expected = oracle.decode(score, job.prompt, job.max_tokens, job.params, job.seed, job.eos)
        assert out.output == expected


@pytest.mark.parametrize("parallel", [False, True])
def test_rounds_are_those_of_eager_decoding(parallel: bool) -> None:
    """The same bytes in the same rounds: drafts too are what they are there."""
    model = tiny_model()
    prophet = agreeing_prophet(model, parallel=parallel)
    eager = tiny_decoder(torch.float64, model=model, prophet=prophet)
    graphed = torch_graph_decoder(model, prophet)
    for params in (SamplingParams(), SamplingParams(temperature=0, frequency_penalty=0.5)):
        jobs = _jobs(params, range(8), 60)
        # one length for all, so that no row's round is wider than it asks for
        for gamma in (0, 3, 7):
            drafting = [replace(job, draft_length=gamma) for job in jobs]
            outputs = (generate(decoder, drafting, rounds=1) for decoder in (eager, graphed))
            for a, b in zip(*outputs, strict=True):
                assert a == b


@pytest.mark.parametrize("prompt", [1, 2, 143, 158, 159])
def test_rows_end_at_the_last_place_of_the_context(prompt: int) -> None:
    model = tiny_model()
    decoder = torch_graph_decoder(model, tiny_prophet(model, parallel=True), lengths=())
    jobs = [
        Job((b"0123456789" * 16)[:prompt], 160 - prompt, SamplingParams(), 5, n) for n in (0, 5, 16)
    ]
    outputs = generate(decoder, jobs)
    assert {len(out.output) for out in outputs} == {160 - prompt}
    assert len({out.output for out in outputs}) == 1


def test_log_probabilities_are_those_of_eager_decoding() -> None:
    model = tiny_model()
    prophet = agreeing_prophet(model)
    jobs = [
        Job(b"score this", 20, SamplingParams(), i, i * 2, logprobs=i, score_prompt=i > 1)
        for i in range(4)
    ] + [Job(b"none", 20, SamplingParams(), 9, 3)]
    eager = generate(tiny_decoder(torch.float64, model=model, prophet=prophet), jobs)
    graphed = generate(torch_graph_decoder(model, prophet), jobs)
    for job, a, b in zip(jobs, eager, graphed, strict=True):
        assert a.output == b.output
        for x, y in (
            (a.prompt_logprobs, b.prompt_logprobs),
            *((p.logprobs, q.logprobs) for p, q in zip(a.results, b.results, strict=True)),
        ):
            assert [r.byte for r in x] == [r.byte for r in y]
            assert [r.logprob for r in x] == pytest.approx([r.logprob for r in y], abs=1e-12)
            assert [[n for n, _ in r.top] for r in x] == [[n for n, _ in r.top] for r in y]
        assert all(len(r.logprobs) == (job.logprobs is not None) * len(r.output) for r in b.results)


def test_a_prompt_is_forked_and_drafted_for_as_if_consumed() -> None:
    model = tiny_model()
    for parallel in (False, True):
        decoder = torch_graph_decoder(model, agreeing_prophet(model, parallel=parallel), slots=2)
        job = Job(b"a prompt that is shared", 40, SamplingParams(), 3, 4)
        (first,) = generate(decoder, [job], rounds=1)
        decoder.open(1, replace(job, seed=3))
        decoder.fork(0, 1)
        results = []
        while sum(len(result.output) for result in results) < 40:
            results.append(decoder.step({1: 4})[1])
        assert results == first.results


class Recorder(TorchDispatchMode):
    """Names and shapes of all operations; those that a capture forbids are errors."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} reads on the host"
        # a list that becomes a tensor is copied to the device; a number is an argument of a kernel
        assert "lift_fresh" not in str(func) or args[0].ndim == 0
        shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
        self.seen.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("gamma", [0, 1, 5])
def test_a_round_can_be_captured(gamma: int, parallel: bool) -> None:
    """Nothing is read on the host inside, and other data make the same operations."""
    model = tiny_model()
    decoder = torch_graph_decoder(model, agreeing_prophet(model, parallel=parallel))
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    work = rounds._prepared(Shape(4, gamma, True))
    inputs = rounds._inputs[4]
    seen = []
    for turn in range(3):
        params = SamplingParams(temperature=turn / 2, top_k=turn, frequency_penalty=turn)
        for slot in range(turn + 1):
            decoder.open(slot, Job(b"x" * (1 + turn), 50, params, turn, gamma))
        inputs.send(list(range(turn + 1)), [gamma] * (turn + 1), [True] * (turn + 1))
        with Recorder() as recorder:
            work()
        seen.append(recorder.seen)
        for slot in range(turn + 1):
            decoder.close(slot)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) > 20


def test_idle_rows_leave_every_slot_as_it_was() -> None:
    model = tiny_model()
    for parallel in (False, True):
        decoder = torch_graph_decoder(model, agreeing_prophet(model, parallel=parallel))
        rounds = decoder.run_round
        assert isinstance(rounds, GraphRounds)
        generate(decoder, [Job(b"text", 20, SamplingParams(), draft_length=3)])
        state, scratch = decoder.state, decoder.slots
        kept = [state.length, state.last, state.counts, decoder.drafter.states]
        kept += [
            decoder.model.stack.keys.transpose(0, 1),
            decoder.model.stack.values.transpose(0, 1),
        ]
        before = [tensor[:scratch].clone() for tensor in kept]
        for shape in (Shape(4, 0, False), Shape(2, 0, True), Shape(8, 5, True)):
            work = rounds._prepared(shape)
            rounds._inputs[shape.rows].send([], [], [])
            result = work().result
            assert result[:, shape.width :].eq(0).all()
        for tensor, old in zip(kept, before, strict=True):
            assert torch.equal(tensor[:scratch], old)
        assert state.length[scratch] == 0


class Counting:
    """A capture that captures nothing and counts."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, work: Work) -> Work:
        self.captured += 1
        work()
        return work

    def bytes_held(self) -> int:
        return self.captured << 20


def test_captures_are_bounded_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    decoder = torch_graph_decoder(model, agreeing_prophet(model), slots=2, lengths=(1, 2, 3))
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    jobs = [Job(b"text", 30, SamplingParams(), i, 2 * i) for i in range(2)]
    expected = generate(decoder, jobs, rounds=1)
    monkeypatch.setattr(graph_round, "MOST_GRAPHS", 3)
    rounds._work.clear()
    rounds._capture = capture = Counting()
    with caplog.at_level("INFO"):
        rounds.prepare()
    assert "captured 3 graphs of 12" in caplog.text
    assert "3.0 MiB" in caplog.text
    assert generate(decoder, jobs, rounds=1) == expected
    assert capture.captured > 3
    assert len(rounds._work) == 3
    monkeypatch.setattr(graph_round, "LONGEST_CAPTURE_S", -1)
    rounds._work.clear()
    rounds.prepare()
    assert not rounds._work


def test_cuda_kernels_are_refused_where_they_cannot_be() -> None:
    options: dict[str, Any] = {"slots": 1, "kernels": "cuda"}
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float64)):
        with pytest.raises(ValueError, match="kernels: those of cuda are for"):
            build_decoder(tiny_model(), None, device=torch.device(device), dtype=dtype, **options)


def test_without_triton_or_a_newer_gpu_torch_decodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    device = torch.device("cuda")
    capability = (8, 6)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not runs_on_graphs("auto", device, torch.bfloat16)
    assert "without CUDA graphs: Triton cannot be imported" in caplog.text
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert not runs_on_graphs("auto", device, torch.bfloat16)
    assert f"{tmp_path} has no Python.h" in caplog.text
    (tmp_path / "Python.h").touch()
    assert runs_on_graphs("auto", device, torch.bfloat16)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert not runs_on_graphs("auto", device, torch.bfloat16)
    assert "Triton finds no C compiler" in caplog.text
    capability = (7, 5)
    assert not runs_on_graphs("auto", device, torch.bfloat16)
    assert "older" in caplog.text
    with pytest.raises(ValueError, match="were asked for: the GPU is older"):
        runs_on_graphs("cuda", device, torch.bfloat16)
    assert not runs_on_graphs("torch", device, torch.bfloat16)
    assert not runs_on_graphs("auto", CPU, torch.bfloat16)
    assert spare_slots("auto", CPU, torch.bfloat16) == 0
