"""What needs a GPU: captured rounds, their bytes, their bounds, and what falls back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_decoders import run_ahead
from test_lossless_model import FILTERS, _jobs
from tiny import agreeing_prophet, tiny_model

from specdec import graph_round
from specdec.build import build_decoder
from specdec.checkpoint import load_model, load_prophet
from specdec.decoder import LONGEST_CHUNK, Decoder, Job, generate
from specdec.graph_round import GraphRounds
from specdec.invariance import measure_invariance
from specdec.sampling import SamplingParams
from specdec.static_round import Shape

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")

DEVICE = torch.device("cuda")
SHIPPED = Path(__file__).parent.parent / "checkpoints" / "default"


def _decoder(
    parallel: bool, dtype: torch.dtype, kernels: Any = "cuda", slots: int = 8
) -> Decoder[Any]:
    model = tiny_model()
    prophet = agreeing_prophet(model, parallel=parallel)
    return build_decoder(model, prophet, slots=slots, device=DEVICE, dtype=dtype, kernels=kernels)


@pytest.mark.parametrize("parallel", [False, True])
def test_nothing_waits_for_the_device_inside_a_round(parallel: bool) -> None:
    """Uncaptured, and first of all: a capture that something waits in leaves torch broken, and does
    not say where that is."""
    decoder = _decoder(parallel, torch.bfloat16)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    rounds._capture = None
    for shape in (Shape(4, 0, False), Shape(4, 5, True)):
        work = rounds._prepared(shape)
        rounds._inputs[4].send([], [], [])
        work()  # kernels are compiled
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slots", [1, 8, 64])
def test_rows_have_the_same_bits_in_any_company(dtype: torch.dtype, slots: int) -> None:
    found = measure_invariance(_decoder(False, dtype, slots=slots).model)
    assert found.exact, f"{found.differing} of {found.places} places differ"


def test_rows_of_the_shipped_model_have_the_same_bits_in_any_company() -> None:
    model = load_model(SHIPPED)
    decoder = build_decoder(
        model, None, slots=32, context=700, device=DEVICE, dtype=torch.bfloat16, kernels="cuda"
    )
    assert measure_invariance(decoder.model).exact


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parallel", [False, True])
def test_batches_equal_base_alone(parallel: bool, dtype: torch.dtype, name: str) -> None:
    decoder = _decoder(parallel, dtype)
    for temperature in (0.0, 0.7, 1.5):
        jobs = _jobs(replace(FILTERS[name], temperature=temperature), range(8), 60)
        for job, out in zip(jobs, generate(decoder, jobs), strict=True):
            (alone,) = generate(decoder, [replace(job, draft_length=0)])
            assert out.output == alone.output


@pytest.mark.parametrize("parallel", [False, True])
def test_captured_rounds_are_those_of_the_function(parallel: bool) -> None:
    decoder, other = (_decoder(parallel, torch.bfloat16) for _ in range(2))
    rounds = other.run_round
    assert isinstance(rounds, GraphRounds)
    rounds._capture = None
    jobs = [replace(job, logprobs=2) for job in _jobs(SamplingParams(), range(8), 60)]
    assert generate(decoder, jobs) == generate(other, jobs)


def test_the_shipped_checkpoint_decodes_alike_in_both_modes() -> None:
    model, prophet = load_model(SHIPPED), load_prophet(SHIPPED)
    assert prophet is not None
    decoder = build_decoder(
        model, prophet, slots=4, context=512, device=DEVICE, dtype=torch.bfloat16, kernels="cuda"
    )
    base = Job(b"import os\n\n\ndef ", 200, SamplingParams(), 1)
    (plain,) = generate(decoder, [base])
    outputs = generate(decoder, [replace(base, draft_length=n) for n in (0, 2, 5, 16)])
    assert {out.output for out in outputs} == {plain.output}
    assert outputs[2].accepted > outputs[2].rounds / 2


def test_logits_are_close_to_those_of_torch() -> None:
    decoders = [_decoder(False, torch.float32, kernels) for kernels in ("cuda", "torch")]
    tokens = torch.arange(40, 80, device=DEVICE)
    slot, place = torch.zeros_like(tokens), torch.arange(40, device=DEVICE)
    ours, theirs = (d.model.forward(tokens, slot, place, place, ((1, 40),)) for d in decoders)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_beginning_a_round_waits_for_nothing() -> None:
    """Nor does consuming a prompt, or opening a slot: two rounds are begun before the first is
    read."""
    decoder = _decoder(True, torch.bfloat16)
    job = Job(b"a" * 100, 59, SamplingParams(temperature=1.0), seed=4, draft_length=5)
    (alone,) = generate(decoder, [job])  # graphs, kernels and buffers are there from now on
    torch.cuda.synchronize()
    results, begun = [], []
    try:
        torch.cuda.set_sync_debug_mode("error")
        decoder.open(0, replace(job, prompt=b"b" * 100))
        while size := min(LONGEST_CHUNK, decoder.to_prefill(0)):
            decoder.begin({}, {0: size})
        decoder.close(0)
        decoder.open(0, job)
        while size := min(LONGEST_CHUNK, decoder.to_prefill(0)):
            decoder.begin({}, {0: size})
        begun.append(decoder.begin({0: 5}))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    while sum(len(result.output) for result in results) < 40:
        try:
            torch.cuda.set_sync_debug_mode("error")
            begun.append(decoder.begin({0: 5}, rounds=3))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(begun.pop(0)()[0])
    assert alone.output.startswith(b"".join(result.output for result in results))


@pytest.mark.parametrize("burst", [2, 7, 16])
def test_calls_of_several_rounds_give_the_bytes_of_single_ones(burst: int) -> None:
    decoder = _decoder(True, torch.bfloat16)
    jobs = _jobs(SamplingParams(temperature=0.9), range(8), 60)
    single = generate(decoder, jobs, rounds=1)
    run_ahead(decoder, burst)
    for one, several in zip(single, generate(decoder, jobs), strict=True):
        assert several.output == one.output
        assert (several.rounds, several.accepted) == (one.rounds, one.accepted)


def test_graphs_are_bounded_in_number_and_their_bytes_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = _jobs(SamplingParams(), range(8), 60)
    expected = generate(_decoder(False, torch.bfloat16), jobs)
    monkeypatch.setattr(graph_round, "MOST_GRAPHS", 2)
    decoder = _decoder(False, torch.bfloat16)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    with caplog.at_level("INFO"):
        rounds.prepare()
    assert "captured 2 graphs" in caplog.text
    assert generate(decoder, jobs) == expected
    assert len(rounds._work) == 2
