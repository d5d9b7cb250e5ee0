"""What the model card reports: loops, acceptance without them, bits per byte."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, agreeing_prophet, tiny_model

from specdec.build import Kernels, build_decoder
from train.data import Sample
from train.measurement import loop_start, measure_acceptance, prompt_bytes, spread_prompts
from train.score import bits_per_byte


@pytest.mark.parametrize(
    ("output", "start"),
    [
        (b"", 0),
        (b"all letters differ", 18),
        (b"x = 1\n" * 10, 6),
        (b"once " + b"again " * 9, 10),
        (b"once " + b"again " * 9 + b"ag", 10),
        (b"ends well" + b" " * 20, 29),  # too short to be called a loop
        (b"ends well" + b" " * 40, 10),
        (b"twice is not a loop, " * 2, 42),
        (b"once " + b"again " * 9 + b"!", 60),
    ],
)
def test_a_loop_starts_with_the_second_time(output: bytes, start: int) -> None:
    assert loop_start(output) == start


def test_greedy_loops_are_left_out_of_the_figures() -> None:
    model = tiny_model()
    prophet = agreeing_prophet(model)
    # a head of zeros writes byte 0 for ever, and so does the prophet's
    for head in (model.head, prophet.head):
        head.weight.data.zero_()
    figures, outputs = measure_acceptance(
        model, prophet, [b"abc", b"d"], temperature=0.0, draft_length=3
    )
    assert {len(set(out)) for out in outputs} == {1}
    assert len(outputs[0]) > 100
    # one round, which the loop begins in
    assert figures.bytes_per_round == 4.0
    assert figures.by_position == (1.0, 1.0, 1.0)


KERNELS: list[tuple[Kernels, torch.dtype]] = [("torch", torch.float64), ("auto", torch.float32)]


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS)
def test_bits_are_those_of_one_long_window_where_the_context_allows(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    model = tiny_model()
    decoder = build_decoder(model, None, slots=2, device=CPU, dtype=dtype, kernels=kernels)
    content = np.random.default_rng(0).integers(0, 256, 40).astype(np.uint8)
    tokens = torch.from_numpy(content.astype(np.int64))[None]
    with torch.no_grad():
        logits = model.logits(model(tokens)[:, :-1])
    expected = float(F.cross_entropy(logits[0], tokens[0, 1:])) / math.log(2)
    assert bits_per_byte(decoder, content, 400) == pytest.approx(expected, rel=1e-5)


def test_overlapping_windows_score_every_byte_once() -> None:
    model = tiny_model()
    model.head.weight.data.zero_()
    decoder = build_decoder(model, None, slots=2, device=CPU, dtype=torch.float32)
    context = model.config.max_position_embeddings
    content = np.zeros(context * 3 + 17, np.uint8)
    assert bits_per_byte(decoder, content, len(content)) == pytest.approx(8.0, rel=1e-5)
    assert bits_per_byte(decoder, content, context + 1) == pytest.approx(8.0, rel=1e-5)


def test_prompts_are_spread_evenly() -> None:
    sample = Sample("x", np.arange(256 * 40).astype(np.uint8))
    prompts = spread_prompts(sample, 4, 256)
    assert [len(prompt) for prompt in prompts] == [256] * 4


@pytest.mark.parametrize(("context", "size", "expected"), [(2048, 9000, 256), (128, 9000, 64)])
def test_prompts_fit_the_context(context: int, size: int, expected: int) -> None:
    sample = Sample("x", np.zeros(size, np.uint8))
    assert prompt_bytes(context, [sample]) == expected
    assert prompt_bytes(context, [sample, Sample("y", np.zeros(50, np.uint8))]) == 50
