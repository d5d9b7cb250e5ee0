"""The compiled core against torch: the model's scores, the rule's bytes, and doing without it."""

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, agreeing_prophet, tiny_model, tiny_prophet
from torch import Tensor

from specdec import native_library as library
from specdec.autoregressive_drafter import AutoregressiveDrafter
from specdec.build import Kernels, build_decoder, slot_bytes
from specdec.config import BlockConfig, ModelConfig
from specdec.decoder import Job, Output, generate
from specdec.drafter import Following
from specdec.invariance import measure_invariance
from specdec.model import ByteLlama
from specdec.native_library import NativeUnavailable, native_library
from specdec.native_round import MEMORY, NativeDrafter, _Buffers
from specdec.native_stack import NativeModel, NativeStack
from specdec.noise import gumbel
from specdec.packed import PackedModel
from specdec.prophet import Prophet
from specdec.rule import Group, TorchRule
from specdec.sampling import Features, SamplingParams
from specdec.state import SlotState

try:
    native_library()
except NativeUnavailable as error:
    if "no C++ compiler" not in str(error):
        raise
    pytest.skip(str(error), allow_module_level=True)


def shaped(width: int, heads: int, kv_heads: int, head_dim: int, feed_forward: int) -> ByteLlama:
    torch.manual_seed(0)
    block = BlockConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=feed_forward,
    )
    return ByteLlama(ModelConfig(block, 3, 300)).requires_grad_(False)


PRODUCTS = library._products(library._processor())
"""Of bfloat16 here, as the tests run."""

SHAPES = [
    (32, 2, 1, 16, 48),
    (24, 2, 1, 12, 40),  # nothing a multiple of the vectors
    (64, 4, 4, 16, 96),
    (128, 2, 1, 64, 352),
    (96, 1, 1, 96, 100),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_the_trainable_model(shape: tuple[int, int, int, int, int]) -> None:
    model = shaped(*shape)
    native = NativeModel(model, slots=3, context=290, dtype=torch.float32)
    text = torch.randint(0, 256, (290,))
    expected_hidden = model(text[None])[0]
    expected = model.logits(expected_hidden)
    # in spans of many lengths, in a slot that is not the first, beside rows of another
    done = 0
    for size in (1, 2, 3, 130, 1, 17, 5, 100, 31):
        place = torch.arange(done, done + size)
        other = torch.arange(done, done + 2)
        tokens = torch.cat((text[:2], text[done : done + size]))
        slot = torch.tensor([0, 0] + [2] * size)
        places = torch.cat((other, place))
        hidden, logits = native.forward(tokens, slot, places, places, ((1, 2), (1, size)))
        torch.testing.assert_close(logits[2:], expected[done : done + size], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            hidden[2:], expected_hidden[done : done + size], atol=2e-5, rtol=1e-5
        )
        done += size
    assert done == 290


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_a_row_has_the_same_bits_in_any_company(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    model = shaped(*shape)
    assert measure_invariance(NativeModel(model, slots=5, context=290, dtype=dtype)).exact
    assert measure_invariance(NativeModel(model, slots=1, context=290, dtype=dtype)).exact


def test_bfloat16_is_what_weights_and_cache_are_rounded_to() -> None:
    model = tiny_model()
    rounded = tiny_model()
    for name, parameter in rounded.named_parameters():
        if "blocks" in name and parameter.ndim == 2:
            parameter.data.copy_(parameter.bfloat16())
    text = torch.randint(0, 256, (100,))
    place, slot = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    native = NativeModel(model, slots=1, context=100, dtype=torch.bfloat16)
    _, logits = native.forward(text, slot, place, place, ((1, 100),))
    expected = rounded.logits(rounded(text[None]))[0]
    # what is left is the cache's rounding, which the first byte's attention alone does not see
    torch.testing.assert_close(logits[0], expected[0], atol=0.02, rtol=0.02)
    assert (logits - expected).abs().mean() < 0.02 * expected.abs().mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_looks_far_back_in_bfloat16_too(
    shape: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, values and what they are multiplied by are rounded; attention is sharp."""
    model = shaped(*shape)
    with torch.no_grad():
        for block in model.stack.blocks:
            for linear in (block.qkv, block.output, block.gate_up, block.down):  # type: ignore[union-attr]
                linear.weight.copy_((4 * linear.weight).bfloat16())  # type: ignore[union-attr]
        model.embedding.weight.mul_(torch.linspace(-2, 2, 256).exp()[:, None])
    text = torch.randint(0, 256, (290,), generator=torch.Generator().manual_seed(1))
    place, slot = torch.arange(290), torch.zeros(290, dtype=torch.int64)
    native = NativeModel(model, slots=1, context=290, dtype=torch.bfloat16)
    _, logits = native.forward(text, slot, place, place, ((1, 290),))
    if PRODUCTS == "pairs":  # so are inputs of linears, and queries
        attend = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            "torch.nn.functional.scaled_dot_product_attention",
            lambda query, *others, **how: attend(query.bfloat16().float(), *others, **how),
        )
        for block in model.stack.blocks:
            for linear in (block.qkv, block.output, block.gate_up, block.down):  # type: ignore[union-attr]
                linear.register_forward_pre_hook(lambda _, x: (x[0].bfloat16().float(),))  # type: ignore[union-attr]
    expected = model.logits(model(text[None]))[0]
    error = (logits - expected).norm() / expected.norm()
    # a bfloat16 cache alone gives up to 0.019
    assert error < (0.01 if PRODUCTS == "integers" else 0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_what_weights_are_rounded_to(shape: tuple[int, int, int, int, int]) -> None:
    model = shaped(*shape)
    text = torch.randint(0, 256, (100,), generator=torch.Generator().manual_seed(1))
    place, slot = torch.arange(100), torch.zeros(100, dtype=torch.int64)

    def logits(dtype: torch.dtype) -> Tensor:
        passes = NativeModel(model, slots=1, context=100, dtype=dtype)
        return passes.forward(text, slot, place, place, ((1, 100),))[1]

    exact, eight = logits(torch.float32), logits(torch.int8)
    with torch.no_grad():
        for block in model.stack.blocks:
            for linear in (block.qkv, block.output, block.gate_up, block.down):
                size = linear.weight.abs().amax(1, keepdim=True) / 127
                linear.weight.copy_((linear.weight / size).round() * size)
    rounded = logits(torch.float32)
    # beside the weights the cache and perhaps the inputs are rounded, to a lesser degree
    assert (eight - rounded).abs().mean() < 0.5 * (exact - rounded).abs().mean()


@pytest.mark.parametrize("kept", [70, 71])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copied_slot_goes_on_like_its_source(dtype: torch.dtype, kept: int) -> None:
    model = tiny_model()
    native = NativeModel(model, slots=2, context=120, dtype=dtype)
    text, place, size = torch.randint(0, 256, (100,)), torch.arange(100), 100 - kept
    first = torch.zeros(kept, dtype=torch.int64)
    native.forward(text[:kept], first, place[:kept], place[:kept], ((1, kept),))
    native.copy(0, 1, kept)
    rows = [
        native.forward(
            text[kept:], torch.full((size,), slot), place[kept:], place[kept:], ((1, size),)
        )
        for slot in (0, 1)
    ]
    assert torch.equal(rows[0][1], rows[1][1])


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 1e-3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 256]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.2, 1e-6]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    min_tokens=st.sampled_from([0, 3]),
    logit_bias=st.sampled_from([(), ((3, -float("inf")), (7, 5.0))]),
)


@settings(deadline=None, max_examples=150)
@given(
    params=st.lists(PARAMS, min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    drafted=st.integers(0, 6),
    grain=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_the_rule_picks_and_judges_as_torch_does(
    params: list[SamplingParams], seed: int, drafted: int, grain: float
) -> None:
    """With a grain, logits are few different numbers: ties everywhere."""
    generator = torch.Generator().manual_seed(seed)
    state = SlotState(6, CPU)
    slots = torch.randperm(6, generator=generator)[: len(params)]
    features = Features()
    for slot, one in zip(slots.tolist(), params, strict=True):
        state.open(slot, b"prompt", 100, one, seed - slot, 10)
        state.counts[slot, :40] = torch.randint(0, 3, (40,), generator=generator)
        features |= one.features
    state.refill_noise(slots.tolist(), [5] * len(params), drafted + 1)
    group = Group(slots, drafted + 1, features)
    logits = torch.randn(len(params), drafted + 1, 256, generator=generator) * 3
    if grain:
        logits = (logits * grain).round() / grain
    rule = TorchRule(state, group)
    buffers = _Buffers(state)

    def choose(width: int, before: int, scores: Tensor, written: Tensor) -> Tensor:
        chosen = torch.empty(len(slots), width, dtype=torch.int64)
        arrays = (slots, scores.contiguous(), written.contiguous())
        pointers = [array.data_ptr() for array in arrays]
        native_library().specdec_choose(
            ctypes.byref(buffers.slots),
            *(len(slots), width, before),
            *pointers,
            written.shape[1],
            chosen.data_ptr(),
        )
        return chosen

    drafts = torch.zeros(len(params), 0, dtype=torch.int64)
    for step in range(drafted):
        picked = rule.pick(step, logits[:, step])
        assert torch.equal(choose(1, step, logits[:, step], drafts)[:, 0], picked)
        drafts = torch.cat((drafts, picked[:, None]), 1)
    assert torch.equal(choose(drafted + 1, 0, logits, drafts), rule.judge(logits, drafts))


PROPHETS = [
    *({"leading": leading, "width": 24} for leading in (1, 2, 4)),
    *({"parallel": True, "width": width} for width in (24, 32, 48)),
]


@pytest.mark.parametrize("shape", [None, *PROPHETS], ids=str)
def test_rounds_are_those_of_torch(shape: dict[str, int] | None) -> None:
    """Bytes, drafts, what was accepted and log-probabilities, for rows of every sort at once.

    Prompts that are drafted for are short enough for the native prophet to be told of them whole.
    """
    model = tiny_model()
    prophet = tiny_prophet(model, **shape) if shape else None
    sampled = SamplingParams(temperature=1.0)
    adjusted = replace(sampled, presence_penalty=0.8, repetition_penalty=1.2, top_k=40)
    jobs = [
        Job(b"x", 60, sampled, 1, 5),
        Job(b"xy", 60, sampled, 2, 2, logprobs=2, score_prompt=True),
        Job(b"xyz", 40, adjusted, 3, 16, eos=b"e"[0]),
        Job(b"longer" * 5, 33, SamplingParams(temperature=0), 4, 5, eos=10),
        Job(b"longer" * 23, 20, adjusted, 5, 0, logprobs=0),
        Job(b"longer" * 5, 50, sampled, 6, 1),
        Job(b"scored" * 9, 0, sampled, 7, 0, logprobs=1, score_prompt=True),
        Job(b"\0" * 4, 60, sampled, 8, 0),
    ]
    if prophet is None:
        jobs = [replace(job, draft_length=0) for job in jobs]
    figures = []
    for kernels in ("native", "torch"):
        decoder = build_decoder(
            model, prophet, slots=8, device=CPU, dtype=torch.float32, kernels=kernels
        )
        figures.append(generate(decoder, jobs, rounds=1))
        assert decoder.state.counts.sum(1)[2] == len(
            b"".join(r.output for r in figures[-1][2].results)
        )
    for ours, theirs in zip(*figures, strict=True):
        assert [replace(r, logprobs=(), tries=()) for r in ours.results] == [
            replace(r, logprobs=(), tries=()) for r in theirs.results
        ]
        assert flat(ours) == pytest.approx(flat(theirs), abs=1e-4)
    assert (prophet is None) == (sum(out.accepted for out in figures[0]) == 0)


def flat(out: Output) -> list[float]:
    """Every log-probability of an output, and the bytes that they are of."""
    records = [*out.prompt_logprobs, *(item for r in out.results for item in r.logprobs)]
    return [
        number
        for item in records
        for number in (item.byte, item.logprob or 0.0, *(n for pair in item.top for n in pair))
    ]


def test_kernels_are_chosen_by_name_and_by_what_fits() -> None:
    model = tiny_model()

    def kind(dtype: torch.dtype, kernels: str) -> type:
        return type(
            build_decoder(model, None, slots=1, device=CPU, dtype=dtype, kernels=kernels).model  # type: ignore[arg-type]
        )

    assert kind(torch.float32, "auto") is kind(torch.bfloat16, "native") is NativeModel
    assert kind(torch.float64, "auto") is kind(torch.float32, "torch") is PackedModel
    with pytest.raises(ValueError, match=r"kernels: .* not torch.float64"):
        kind(torch.float64, "native")


def test_a_text_that_sums_cannot_hold_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="600000 places exceed the compiled core's 500000"):
        NativeStack(model.stack, model.head_weight, slots=1, places=600_000, dtype=torch.bfloat16)


def test_int8_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"slots": 1, "device": CPU, "dtype": torch.int8}
    for kernels in ("torch", "cuda"):
        with pytest.raises(ValueError, match=f"kernels: those of {kernels} have no int8"):
            build_decoder(tiny_model(), None, kernels=kernels, **options)  # type: ignore[arg-type]

    def unavailable() -> None:
        raise NativeUnavailable("no C++ compiler was found")

    monkeypatch.setattr("specdec.build.native_library", unavailable)
    with pytest.raises(ValueError, match="native ones are needed here: no C"):
        build_decoder(tiny_model(), None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_as_large_as_announced(dtype: torch.dtype) -> None:
    model = tiny_model()
    parallel, autoregressive = tiny_prophet(model, parallel=True), tiny_prophet(model)

    def each(kernels: Kernels, prophet: Prophet | None) -> int:
        config = prophet.config if prophet else None
        return slot_bytes(model.config, config, 160, CPU, dtype, kernels)

    # in steps each key and value has a scale
    scales = 8 if dtype == torch.bfloat16 and PRODUCTS == "integers" else 0
    assert each("native", None) == 2 * 192 * ((16 + 32) * dtype.itemsize + scales)
    assert each("native", autoregressive) == each("native", None)
    own = 192 * ((12 + 32) * dtype.itemsize + scales)
    assert each("native", parallel) == each("native", None) + own
    decoder = build_decoder(model, parallel, slots=3, device=CPU, dtype=dtype, kernels="torch")
    stacks = [decoder.model.stack, decoder.drafter.stack]  # type: ignore[union-attr]
    kept = [tensor.nbytes for stack in stacks for tensor in (stack.keys, stack.values)]
    assert sum(kept) == 3 * each("torch", parallel)


def test_gates_far_from_zero_are_no_garbage() -> None:
    model = tiny_model()
    for block in model.stack.blocks:
        block.gate_up.weight.data.mul_(400)  # type: ignore[union-attr, operator]
        block.down.weight.data.mul_(1e-3)  # type: ignore[union-attr, operator]
    text = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(1))
    place, slot = torch.arange(60), torch.zeros(60, dtype=torch.int64)
    native = NativeModel(model, slots=1, context=60, dtype=torch.float32)
    _, logits = native.forward(text, slot, place, place, ((1, 60),))
    expected = model.logits(model(text[None]))[0]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_without_a_compiler_torch_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "_directories", lambda: [tmp_path / "empty"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    native_library.cache_clear()
    try:
        with pytest.raises(NativeUnavailable, match="no C\\+\\+ compiler"):
            native_library()
        options = {"slots": 1, "device": CPU, "dtype": torch.float32}
        model = tiny_model()
        decoder = build_decoder(model, agreeing_prophet(model), **options)  # type: ignore[arg-type]
        assert isinstance(decoder.model, PackedModel)
        assert isinstance(decoder.drafter, AutoregressiveDrafter)
        assert "no C++ compiler" in caplog.text
        with pytest.raises(ValueError, match="kernels: native ones are needed here"):
            build_decoder(model, None, kernels="native", **options)  # type: ignore[arg-type]
    finally:
        native_library.cache_clear()


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_directories", lambda: [tmp_path])
    monkeypatch.setattr(library, "FLAGS", ("-no-such-flag",))
    native_library.cache_clear()
    try:
        with pytest.raises(NativeUnavailable, match="no-such-flag"):
            native_library()
        assert list(tmp_path.iterdir()) == []
    finally:
        native_library.cache_clear()


def test_a_core_that_cannot_be_loaded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage = tmp_path / "core.so"
    garbage.write_bytes(b"not a library")
    monkeypatch.setattr(library, "_built", lambda: garbage)
    native_library.cache_clear()
    try:
        with pytest.raises(NativeUnavailable, match="cannot be loaded"):
            native_library()
    finally:
        native_library.cache_clear()


@pytest.fixture
def small_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only its keeping matters, a core that is compiled in no time."""
    source = tmp_path / "core.cpp"
    source.write_text('extern "C" int specdec_nothing() { return 0; }')
    monkeypatch.setattr(library, "SOURCES", [source])


@pytest.mark.usefixtures("small_core")
def test_it_is_compiled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setattr(library, "_directories", lambda: [blocked / "below", tmp_path / "kept"])
    first = library._built()
    assert first.parent == tmp_path / "kept"
    stamp = first.stat().st_mtime_ns
    assert library._built() == first
    assert first.stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("small_core")
def test_a_directory_that_others_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    monkeypatch.setattr(library, "_directories", lambda: [shared])
    name = library._built().name
    (shared / name).write_bytes(b"not a library")
    shared.chmod(0o777)
    monkeypatch.setattr(library, "_directories", lambda: [shared, own])
    assert library._built() == own / name


@pytest.mark.usefixtures("small_core")
def test_a_directory_that_may_not_be_looked_into_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, own = tmp_path / "closed", tmp_path / "own"
    stat = Path.stat

    def refusing(path: Path, **options: Any) -> os.stat_result:
        if closed in (path, path.parent):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refusing)  # root may look anywhere
    monkeypatch.setattr(library, "_directories", lambda: [closed, own])
    assert library._built().parent == own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_jobs_of_all_kinds_are_equal_to_base_alone(dtype: torch.dtype) -> None:
    model = tiny_model()
    decoder = build_decoder(
        model, agreeing_prophet(model), slots=6, device=CPU, dtype=dtype, kernels="native"
    )
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9),
        SamplingParams(temperature=1.0, min_p=0.02, repetition_penalty=1.1),
    ]
    base = [Job(b"p" * (1 + 20 * i), 70, p, i, logprobs=1) for i, p in enumerate(params)]
    alone = [generate(decoder, [job])[0] for job in base]
    mixed = generate(decoder, [*base, *(replace(job, draft_length=6) for job in base)])
    for one, plain, drafted in zip(alone, mixed[:3], mixed[3:], strict=True):
        assert one.output == plain.output == drafted.output
        scores = [[s for r in out.results for s in r.logprobs] for out in (one, plain, drafted)]
        assert scores[0] == scores[1] == scores[2]


def test_products_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_BF16_PRODUCTS", "fast")
    with pytest.raises(
        ValueError, match="SPECDEC_BF16_PRODUCTS is 'fast', not one of auto, float32,"
    ):
        library._built()
    monkeypatch.setattr(library, "_processor", lambda: {"flags": "avx2 avx512f"})
    monkeypatch.setenv("SPECDEC_BF16_PRODUCTS", "pairs")
    with pytest.raises(ValueError, match="pairs are for processors with AVX512-BF16"):
        library._built()
    monkeypatch.setenv("SPECDEC_BF16_PRODUCTS", "integers")
    with pytest.raises(
        ValueError, match="integers are for processors with AVX2, and AVX512BW if with AVX-512"
    ):
        library._built()


def test_the_faster_products_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECDEC_BF16_PRODUCTS", raising=False)
    both = "avx2 avx512f avx512_bf16"
    assert library._products({"flags": both, "vendor_id": "AuthenticAMD"}) == "pairs"
    assert library._products({"flags": both, "vendor_id": "GenuineIntel"}) == "float32"
    fused = f"{both} avx512bw avx512_vnni"
    assert library._products({"flags": fused, "vendor_id": "AuthenticAMD"}) == "pairs"
    assert library._products({"flags": fused, "vendor_id": "GenuineIntel"}) == "integers"
    bare = "avx2 avx512f avx512bw"
    assert library._products({"flags": bare, "vendor_id": "GenuineIntel"}) == "float32"
    assert library._products({"flags": "avx2 avx512f", "vendor_id": "AuthenticAMD"}) == "float32"
    assert library._products({"flags": "avx2", "vendor_id": "AuthenticAMD"}) == "integers"
    assert library._products({"Features": "asimd"}) == "float32"
    monkeypatch.setenv("SPECDEC_BF16_PRODUCTS", "float32")
    assert library._products({"flags": both, "vendor_id": "AuthenticAMD"}) == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("other", library.PRODUCTS)
def test_the_other_products_keep_to_the_rules_too(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = library._processor()
    if other == library._products(processor):
        pytest.skip("these are the ones that all tests use")
    monkeypatch.setenv("SPECDEC_BF16_PRODUCTS", other)
    try:
        library._products(processor)
    except ValueError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", __file__],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("seed", [0, 5, -7, 2**62 + 3])
def test_noise_has_the_same_bits_as_torchs(seed: int) -> None:
    """A bias that undoes it leaves the last bits to decide."""
    state = SlotState(1, CPU)
    buffers = _Buffers(state)
    logits, slot, chosen = torch.zeros(256), torch.tensor([0]), torch.tensor([0])
    seen = set()
    for position in range(2, 200):
        noise = gumbel(torch.tensor(seed), torch.tensor(position))
        bias = tuple(enumerate((-noise).tolist()))
        params = SamplingParams(logit_bias=bias)
        state.open(0, b"x" * position, 1000, params, seed, None)
        native_library().specdec_choose(
            ctypes.byref(buffers.slots),
            *(1, 1, 0),
            slot.data_ptr(),
            logits.data_ptr(),
            None,
            0,
            chosen.data_ptr(),
        )
        sums = (-noise - (-noise).max()) + noise
        assert int(chosen) == int(sums.argmax())
        seen.add(int(chosen))
    assert len(seen) > 20


def test_a_row_of_no_numbers_spoils_no_other() -> None:
    model = tiny_model()
    passes = NativeModel(model, slots=3, context=16, dtype=torch.bfloat16)
    slot, place = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    x = torch.randn(3, model.config.block.hidden_size, generator=torch.Generator().manual_seed(3))
    _, sound = passes.stack.forward(x, slot, place, place)
    for bad in (float("nan"), float("inf")):
        spoiled = x.clone()
        spoiled[1, 5] = bad
        _, logits = passes.stack.forward(spoiled, slot, place, place)
        assert logits[1].isnan().all()
        assert torch.equal(logits[[0, 2]], sound[[0, 2]])
    # nor another text in its place, beyond which those of the longer one are
    for index in (1, 2, 3):
        passes.stack.forward(spoiled, slot, place + index, place + index)
    for index in range(3):
        _, logits = passes.stack.forward(x, slot, place + index, place + index)
        assert logits.isfinite().all()
        _, alone = passes.stack.forward(x[1:2], slot[:1], place[:1] + index, place[:1] + index)
        assert torch.equal(logits[1:2], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_place_of_no_numbers_is_not_passed_over(dtype: torch.dtype) -> None:
    """By no row of its text, alone or beside rows that look further."""
    model = tiny_model()
    width = model.config.block.hidden_size
    for alone in (True, False):
        passes = NativeModel(model, slots=1, context=40, dtype=dtype)
        text = torch.randn(30, width, generator=torch.Generator().manual_seed(3))
        text[8] = float("nan")
        for index in range(15):
            place = torch.tensor([index])
            passes.stack.forward(text[index : index + 1], torch.zeros(1).long(), place, place)
        place = torch.arange(15, 16 if alone else 30)
        _, logits = passes.stack.forward(text[place], torch.zeros(len(place)).long(), place, place)
        assert logits.isnan().all()


@pytest.mark.parametrize("parallel", [False, True])
def test_a_prophet_is_told_of_the_end_of_a_prompt_however_that_is_consumed(parallel: bool) -> None:
    model = tiny_model(context=400)
    # one that goes by what it has seen, and is right now and then
    prophet = tiny_prophet(model, parallel=parallel)
    decoder = build_decoder(
        model, prophet, slots=4, device=CPU, dtype=torch.float32, kernels="native"
    )
    assert isinstance(decoder.drafter, NativeDrafter)
    assert decoder.drafter.memory == (MEMORY if parallel else 2)
    prompt = bytes(range(7, 207))
    job = Job(prompt, 180, SamplingParams(temperature=2.0), 3, 5)
    decoder.open(1, Job(b"other" * 6, 60, SamplingParams(), 4, 5))  # leaves something behind
    while size := min(100, decoder.to_prefill(1)):
        decoder.step({}, {1: size})
    decoder.close(1)
    scored = replace(job, logprobs=0, score_prompt=True)
    for slot, chunk in ((0, 128), (1, 11), (2, 0), (3, 128)):
        decoder.open(slot, scored if slot == 3 else job)
        if not chunk:
            decoder.fork(0, slot)
        while size := min(chunk, decoder.to_prefill(slot)):
            decoder.step({}, {slot: size})
    tries: dict[int, list[tuple[int, int]]] = {slot: [] for slot in range(4)}
    output = dict.fromkeys(range(4), b"")
    while len(output[0]) < 180:
        for slot, result in decoder.step(dict.fromkeys(range(4), 5)).items():
            tries[slot].append((result.drafted, result.accepted))
            output[slot] += result.output
    assert tries[0] == tries[1] == tries[2] == tries[3]
    assert sum(accepted for _, accepted in tries[0]) > 5
    for slot in range(4):
        decoder.close(slot)
    (base,) = generate(decoder, [replace(job, draft_length=0)])
    assert set(output.values()) == {base.output}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("drafted", [0, 9])
def test_a_row_that_rested_drafts_like_one_that_begins_there(parallel: bool, drafted: int) -> None:
    """What the prophet knows of it is what it is told of a prompt, whatever it drafted before."""
    model = tiny_model(context=400)
    prophet = tiny_prophet(model, parallel=parallel)
    decoder = build_decoder(
        model, prophet, slots=3, device=CPU, dtype=torch.float32, kernels="native"
    )
    prompt, params = bytes(range(7, 67)), SamplingParams(temperature=2.0)

    def begin(slot: int, prompt: bytes, tokens: int) -> None:
        decoder.open(slot, Job(prompt, tokens, params, 3, 5))
        while size := min(50, decoder.to_prefill(slot)):
            decoder.step({}, {slot: size})

    def rounds(slots: Sequence[int], gamma: int, count: int) -> list[list[tuple[bytes, int]]]:
        steps = [decoder.step(dict.fromkeys(slots, gamma), rounds=1) for _ in range(count)]
        return [[(step[slot].output, step[slot].accepted) for step in steps] for slot in slots]

    def text(steps: Sequence[tuple[bytes, int]]) -> bytes:
        return b"".join(output for output, _ in steps)

    begin(0, prompt, 200)
    early = rounds([0], 5, drafted)[0]
    before = text(early + rounds([0], 0, 2 * MEMORY + 3)[0])
    begin(1, prompt + before, 200 - len(before))
    rested, begun = rounds([0, 1], 5, 15)
    assert rested == begun
    assert sum(accepted for _, accepted in rested) > 3
    # and its prompt is still kept for others
    decoder.open(2, Job(prompt, 200, params, 3, 5))
    decoder.fork(0, 2)
    assert rounds([2], 5, drafted)[0] == early


@pytest.mark.parametrize("parallel", [False, True])
def test_a_text_of_one_byte_is_drafted_for_whatever_the_slot_held(parallel: bool) -> None:
    model = tiny_model(context=400)
    prophet = tiny_prophet(model, parallel=parallel)
    job = Job(b"x", 100, SamplingParams(temperature=2.0), 3, 5)
    seen = []
    for before in ([], [Job(bytes(range(200)), 150, SamplingParams(), 4, 5)]):
        decoder = build_decoder(
            model, prophet, slots=1, device=CPU, dtype=torch.float32, kernels="native"
        )
        for other in before:
            generate(decoder, [other])
        (output,) = generate(decoder, [job])
        seen.append((output.output, output.rounds))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_end_before_one_that_is_too_unlikely(
    parallel: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how far the prophet's choices lead, as torch has it, in the first round of many texts."""
    leads: list[float] = []
    honest = TorchRule.pick

    def pick(
        rule: TorchRule, step: int, logits: Tensor, following: Following | None = None
    ) -> Tensor:
        if following:
            logits = following.added(logits)
        noise = rule.noise(rule.group.slots, rule.length + 1 + step)
        scores = logits.double() if noise is None else logits.double() / temperature + noise
        first, second = scores[0].topk(2).values.tolist()
        leads.append(first - second)
        return honest(rule, step, logits)

    monkeypatch.setattr(TorchRule, "pick", pick)
    model = tiny_model()
    prophet = agreeing_prophet(model, parallel=parallel)
    torch_decoder, decoder = (
        build_decoder(model, prophet, slots=1, device=CPU, dtype=torch.float32, kernels=kernels)
        for kernels in ("torch", "native")
    )
    params = SamplingParams(temperature=temperature)
    seen = set()
    for seed in range(40):
        leads.clear()
        for each in (torch_decoder, decoder):
            each.open(0, Job(bytes([seed]), 60, params, seed, 8))
        torch_decoder.step({0: 8})
        p_min, chance, expected, near = (0.05, 0.2, 0.4, 0.6)[seed % 4], 1.0, 0, False
        for lead in leads:
            chance *= 1 - 0.7 * math.exp(-lead / 1.1)
            near |= abs(chance - p_min) < 1e-4
            if chance < p_min:
                break
            expected += 1
        result = decoder.step({0: 8}, rounds=1, p_min=p_min)[0]
        (tried,) = result.rounds
        assert near or (tried.drafted, tried.omitted) == (expected, 8 - expected)
        assert (result.drafted, result.omitted, tried.wanted) == (tried.drafted, tried.omitted, 8)
        assert len(result.output) == tried.accepted + 1
        seen.add(tried.drafted)
        for each in (torch_decoder, decoder):
            each.close(0)
    assert len(seen) >= 4


@settings(max_examples=20)
@given(
    st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
    st.sampled_from(["float32", "bfloat16"]),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_the_output_knows_nothing_of_omitted_drafts(
    p_min: float, dtype: str, parallel: bool, rounds: int, seed: int
) -> None:
    """Rows of other lengths, some greedy, beside one another; in calls of a few rounds."""
    model = tiny_model()
    prophet = agreeing_prophet(model, parallel=parallel)
    decoder = build_decoder(
        model, prophet, slots=4, device=CPU, dtype=getattr(torch, dtype), kernels="native"
    )
    jobs = [
        Job(bytes([65 + i]) * (1 + 9 * i), 50, SamplingParams(temperature=i % 3 / 2), seed + i)
        for i in range(4)
    ]
    fast = [replace(job, draft_length=(0, 3, 16, 7)[i]) for i, job in enumerate(jobs)]
    plain = generate(decoder, jobs)
    some = generate(decoder, fast, rounds=rounds, p_min=p_min)
    all_made = generate(decoder, fast)
    assert [row.output for row in some] == [row.output for row in plain]
    for row, other in zip(some, all_made, strict=True):
        assert all(tried.wanted <= 16 for result in row.results for tried in result.rounds)
        assert not any(result.omitted for result in other.results)
    if p_min == 1.0:
        # hardly anything is that certain, and the prophet is told of every byte all the same
        assert sum(row.drafted for row in some) < sum(row.drafted for row in all_made) / 4
        again = generate(decoder, fast)
        assert [row.accepted for row in again] == [row.accepted for row in all_made]


def test_a_choice_without_a_second_is_certain() -> None:
    model = tiny_model()
    decoder = build_decoder(
        model,
        agreeing_prophet(model, parallel=True),
        slots=1,
        device=CPU,
        dtype=torch.float32,
        kernels="native",
    )
    for byte in (0, 7):
        for temperature in (0.0, 1.0):
            params = SamplingParams(temperature=temperature, top_k=1, logit_bias=((byte, 1000.0),))
            (output,) = generate(decoder, [Job(b"a", 40, params, 1, 5)], p_min=1.0)
            assert output.output == bytes([byte]) * 40
            assert not any(result.omitted for result in output.results)
