"""What peers are given is the same model, and what they answer is compared as it should be.

llama.cpp itself is asked where llama-cpp-python is installed, which takes a compilation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tiny import tiny_model

from bench.gguf import in_pairs, write_gguf
from bench.runners import LlamaCpp, Ours, Runner, Transformers
from bench.side import Agreement, Side, reference, report
from server.messages import Mode
from specdec.checkpoint import hugging_face_tensors, save_checkpoint
from specdec.model import ByteLlama

PROMPTS = [b"def read(path):\n", b"It was the best "]
TOKENS = 40


def fields(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_says_what_the_model_is(tmp_path: Path, tied: bool) -> None:
    write_gguf(tmp_path / "model.gguf", tiny_model(tied=tied), torch.bfloat16)
    found = fields(GGUFReader(tmp_path / "model.gguf"))
    assert found["general.architecture"] == "llama"
    assert found["tokenizer.ggml.model"] == "none"
    assert found["llama.rope.freq_base"] == pytest.approx(10000.0)
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    sizes = {
        "vocab_size": 256,
        "context_length": 160,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 16,
    }
    assert {name: found[f"llama.{name}"] for name in sizes} == sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_has_every_weight(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = tiny_model(tied=tied)
    write_gguf(tmp_path / "model.gguf", model, dtype)
    reader = GGUFReader(tmp_path / "model.gguf")
    found = {
        tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    places = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names = {f"model.layers.{i}.{a}": f"blk.{i}.{b}" for i in (0, 1) for a, b in places.items()}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    expected = hugging_face_tensors(model)
    assert len(found) == len(expected)
    for theirs, tensor in expected.items():
        if "q_proj" in theirs or "k_proj" in theirs:
            tensor = in_pairs(tensor, 16)
        stored = tensor if tensor.ndim == 1 else tensor.to(dtype).float()
        name = names[theirs.removesuffix(".weight")] + ".weight"
        assert torch.equal(found[name], stored), name


def test_rows_that_are_turned_together_lie_together() -> None:
    """The docstring's example: two heads of four rows."""
    assert in_pairs(torch.arange(8)[:, None], 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def ours(model: ByteLlama, directory: Path) -> Runner:
    save_checkpoint(directory, model, None, torch.float32)
    return Ours(directory, None, Mode.BASE, len(PROMPTS), torch.float32)


def transformers(model: ByteLlama, directory: Path) -> Runner:
    save_checkpoint(directory, model, None, torch.float32)
    return Transformers(directory, torch.float32)


def llama_cpp(model: ByteLlama, directory: Path) -> Runner:
    pytest.importorskip("llama_cpp")
    torch.set_num_threads(1)  # llama.cpp's threads wait for one another, busily
    write_gguf(directory / "model.gguf", model, torch.float32)
    return LlamaCpp(directory / "model.gguf", len(PROMPTS), 64)


def greedy(model: ByteLlama, prompt: bytes) -> bytes:
    text = prompt
    for _ in range(TOKENS):
        text += bytes([int(reference(model, text)[-1].argmax())])
    return text[len(prompt) :]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("build", [ours, transformers, llama_cpp])
def test_all_write_the_models_bytes(
    tmp_path: Path, build: Callable[[ByteLlama, Path], Runner], tied: bool
) -> None:
    threads = torch.get_num_threads()
    model = tiny_model(tied=tied)
    runner = build(model, tmp_path)
    try:
        expected = [greedy(model, prompt) for prompt in PROMPTS]
        assert runner.generate(PROMPTS, TOKENS) == expected
        assert runner.generate(PROMPTS[1:], TOKENS) == expected[1:]
        text = PROMPTS[0] + expected[0]
        off = runner.logits(text) - reference(model, text)
        # llama.cpp keeps keys and values in float16
        assert float(off.abs().max()) < (0.05 if build is llama_cpp else 1e-3)
    finally:
        torch.set_num_threads(threads)


def test_outputs_are_compared_up_to_the_first_difference() -> None:
    model = tiny_model()
    base = greedy(model, PROMPTS[0])
    scores = reference(model, PROMPTS[0] + base[:7])[-1]
    second = int(scores.topk(2).indices[1])
    agreement = Agreement()
    agreement.add(model, PROMPTS[0], base, base)
    agreement.add(model, PROMPTS[0], base, base[:7] + bytes([second]) + base[8:])
    assert (agreement.total, agreement.equal) == (2 * TOKENS, 2 * TOKENS - 1)
    assert agreement.firsts == [7]
    gap = float(scores.max() - scores[second])
    assert agreement.margins == pytest.approx([gap])
    # a near-tie is what the errors seen allow, at both bytes
    for error, far in ((gap * 0.49, 1), (gap * 0.51, 0)):
        sides = {
            Mode.BASE: Side(seconds=[1.0, 3.0], first_byte=[1.0], agreement=Agreement(1, 1)),
            "other": Side(error, seconds=[2.0, 6.0], first_byte=[1.0], agreement=agreement),
        }
        other = report(sides, 1, TOKENS)[1]
        assert other["no_near_ties"] == far
        assert other["ratio_to_base"] == [0.5, 0.5, 0.5]


def test_bytes_in_a_loop_are_counted() -> None:
    agreement = Agreement()
    agreement.add(tiny_model(), PROMPTS[0], b"x" * TOKENS, b"x" * TOKENS)
    assert agreement.looping == TOKENS - 1
