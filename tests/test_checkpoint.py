"""Checkpoint directories: what is written is read back, and what is not understood is refused.

transformers is the second reader: it stands for every other program that takes these files.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from specdec.checkpoint import (
    CheckpointError,
    load_model,
    load_prophet,
    read_model_config,
    save_checkpoint,
    save_prophet,
    write_atomically,
)
from specdec.config import BlockConfig, ModelConfig, ProphetConfig
from specdec.kinds import build_prophet
from specdec.model import ByteLlama
from specdec.prophet import Prophet

MODEL_BLOCK = BlockConfig(
    hidden_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=20,
    rope_theta=50000.0,
)
MODEL = ModelConfig(MODEL_BLOCK, num_hidden_layers=2, max_position_embeddings=48)
PROPHET_BLOCK = BlockConfig(
    hidden_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=12,
    rms_norm_eps=1e-6,
)
PROPHET = ProphetConfig(
    PROPHET_BLOCK, num_hidden_layers=2, model_hidden_size=24, leading_states=3, draft_length=5
)
PARALLEL = replace(PROPHET, kind="parallel", num_hidden_layers=1, leading_states=1)
BLOCK_0 = "model.layers.0"
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PROPHET_FILES = {"prophet_config.json", "prophet.safetensors"}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def randomized(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Distinct weights everywhere, norms too, that `dtype` can hold."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn.to(dtype).to(parameter.dtype)


def built(
    config: ModelConfig = MODEL,
    dtype: torch.dtype = torch.float32,
    prophet_config: ProphetConfig = PROPHET,
) -> tuple[ByteLlama, Prophet]:
    model = ByteLlama(config)
    prophet = build_prophet(prophet_config, config.max_position_embeddings)
    randomized(model, dtype)
    randomized(prophet, dtype)
    return model, prophet


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with a prophet, not to be changed."""
    directory = tmp_path_factory.mktemp("saved")
    model, prophet = built()
    save_checkpoint(directory, model, prophet, torch.float32)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def change_json(path: Path, **changes: Any) -> None:
    """Sets fields; `...` removes one."""
    fields = {**read_json(path), **changes}
    path.write_text(json.dumps({name: v for name, v in fields.items() if v is not ...}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    # not load_file: its tensors may be the file itself, which the tests then write over
    return parse_tensors(path.read_bytes())


def change_tensors(path: Path, **changes: Any) -> None:
    """Sets tensors, `__` standing for the dots; `...` removes one."""
    tensors = read_tensors(path)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    path.write_bytes(tensor_file({name: t for name, t in tensors.items() if t is not ...}))


def assert_refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        action()
    for word in words:
        assert word in str(refusal.value)


def assert_same_weights(module: torch.nn.Module, other: torch.nn.Module) -> None:
    state, found = module.state_dict(), other.state_dict()
    assert state.keys() == found.keys()
    for name, tensor in state.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(tensor, found[name]), name


# --- round trips ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("eos", [None, 0, 255])
@pytest.mark.parametrize("kind", [PROPHET, PARALLEL], ids=lambda config: config.kind)
def test_a_saved_model_and_prophet_load_with_the_same_bits(
    tmp_path: Path, dtype: torch.dtype, tied: bool, eos: int | None, kind: ProphetConfig
) -> None:
    config = replace(MODEL, tie_word_embeddings=tied, eos_token_id=eos)
    model, prophet = built(config, dtype, kind)
    save_checkpoint(tmp_path, model, prophet, dtype)
    assert names(tmp_path) == FILES | PROPHET_FILES
    loaded, loaded_prophet = load_model(tmp_path), load_prophet(tmp_path)
    assert loaded_prophet is not None
    assert loaded.config == read_model_config(tmp_path) == config
    assert loaded_prophet.config == kind
    assert_same_weights(loaded, model)
    assert_same_weights(loaded_prophet, prophet)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_are_stored_in_the_type_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model, prophet = built()
    save_checkpoint(tmp_path, model, prophet, dtype)
    for name in ("model.safetensors", "prophet.safetensors"):
        assert {t.dtype for t in read_tensors(tmp_path / name).values()} == {dtype}
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
    # what does not fit into bfloat16 is rounded, and loads as what was stored
    expected = model.embedding.weight.detach().to(dtype)
    assert torch.equal(load_model(tmp_path, dtype).embedding.weight, expected)


def test_bfloat16_is_what_a_checkpoint_is_stored_in(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, built()[0], None)
    assert read_tensors(tmp_path / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    assert read_json(tmp_path / "config.json")["torch_dtype"] == "bfloat16"


def test_loaded_modules_are_for_inference_and_compute_what_was_saved(saved: Path) -> None:
    model, prophet = built()
    loaded, loaded_prophet = load_model(saved), load_prophet(saved)
    assert loaded_prophet is not None
    for module in (loaded, loaded_prophet):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    tokens = torch.arange(40)[None] * 5
    assert torch.equal(loaded(tokens), model(tokens).detach())
    states, present = torch.ones(1, 3, 24), torch.tensor([[False, True, True]])
    expected = prophet(states, present, tokens[:, :5]).detach()
    assert torch.equal(loaded_prophet(states, present, tokens[:, :5]), expected)


def test_loading_in_a_narrow_type_keeps_the_rotary_tables_wide(saved: Path) -> None:
    model = load_model(saved, torch.bfloat16)
    assert model.head.weight.dtype == torch.bfloat16
    assert torch.equal(model.stack.cos, ByteLlama(MODEL).stack.cos)
    assert load_model(saved, torch.float64).stack.cos.dtype == torch.float64


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    load_prophet(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_weights_do_not_follow_the_file(directory: Path) -> None:
    model, path = load_model(directory), directory / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(bytes(4000))
    assert_same_weights(model, built()[0])


def test_without_a_prophet_there_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "deep" / "down", built()[0], None)
    assert names(tmp_path / "deep" / "down") == FILES
    assert load_prophet(tmp_path / "deep" / "down") is None


def test_saving_without_a_prophet_removes_an_older_one(directory: Path) -> None:
    (directory / "README.md").write_text("kept")
    save_checkpoint(directory, built()[0], None)
    assert names(directory) == FILES | {"README.md"}


def test_special_tokens_are_written_out(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, built(replace(MODEL, eos_token_id=10))[0], None)
    for name in ("config.json", "generation_config.json"):
        fields = read_json(tmp_path / name)
        special = {key: fields[key] for key in fields if key.endswith("_token_id")}
        assert special == {"bos_token_id": None, "eos_token_id": 10, "pad_token_id": None}


def test_the_prophet_config_is_flat(saved: Path) -> None:
    assert read_json(saved / "prophet_config.json") == {
        "format_version": 1,
        "kind": "autoregressive",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 12,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": 2,
        "model_hidden_size": 24,
        "leading_states": 3,
        "draft_length": 5,
        "state": "final_norm",
    }


# --- config.json: what is read ---


def test_fields_left_out_have_the_defaults_of_transformers(directory: Path) -> None:
    change_json(
        directory / "config.json",
        architectures=...,
        rms_norm_eps=...,
        rope_theta=...,
        rope_parameters=...,
        num_key_value_heads=...,
        tie_word_embeddings=...,
        head_dim=...,
        hidden_act=...,
        attention_bias=None,
    )
    defaults = LlamaConfig(hidden_size=24, num_attention_heads=4)
    block = read_model_config(directory).block
    assert block.rms_norm_eps == defaults.rms_norm_eps == 1e-6
    assert block.rope_theta == 10000.0
    assert block.num_key_value_heads == defaults.num_key_value_heads == 4
    assert block.head_dim == defaults.head_dim == 6
    assert read_model_config(directory).tie_word_embeddings is defaults.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        (7000, ...),
        (7000.0, None),
        (..., {"rope_theta": 7000, "rope_type": "default"}),
        (None, {"rope_theta": 7000.0}),
        (7000.0, {"rope_theta": 7000, "rope_type": "default", "partial_rotary_factor": 1.0}),
        (7000.0, {"rope_type": "default"}),
    ],
)
def test_rope_theta_is_read_from_either_place(directory: Path, outside: Any, inside: Any) -> None:
    change_json(directory / "config.json", rope_theta=outside, rope_parameters=inside)
    assert read_model_config(directory).block.rope_theta == 7000.0


@pytest.mark.parametrize(
    ("config", "generation", "eos"),
    [
        (7, 9, 7),
        ([7], 9, 7),
        (None, 9, None),
        (..., 9, 9),
        (..., [9], 9),
        (..., None, None),
        (..., ..., None),
    ],
)
def test_the_end_byte_is_what_config_json_says_else_generation_config_json(
    directory: Path, config: Any, generation: Any, eos: int | None
) -> None:
    change_json(directory / "config.json", eos_token_id=config)
    change_json(directory / "generation_config.json", eos_token_id=generation)
    assert read_model_config(directory).eos_token_id == eos


def test_without_either_end_byte_no_generation_config_is_needed(directory: Path) -> None:
    change_json(directory / "config.json", eos_token_id=...)
    (directory / "generation_config.json").unlink()
    assert read_model_config(directory).eos_token_id is None


# --- config.json: what is refused ---

REFUSED_FIELDS = [
    ("architectures", ["MistralForCausalLM"]),
    ("architectures", ["LlamaForCausalLM", "LlamaForCausalLM"]),
    ("architectures", "LlamaForCausalLM"),
    ("model_type", "mistral"),
    ("model_type", ...),
    ("vocab_size", 32000),
    ("vocab_size", 256.0),
    ("vocab_size", ...),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("mlp_bias", 0),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 50000.0}),
    ("rope_parameters", {"type": "yarn", "rope_theta": 50000.0}),
    ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ("rope_parameters", {"full_attention": {"rope_theta": 50000.0}}),
    ("rope_parameters", {"rope_theta": float("nan")}),
    ("rope_parameters", [50000.0]),
    ("rope_theta", 10000.0),
    ("rope_theta", -1.0),
    ("rope_theta", True),
    ("rope_theta", "50000"),
    pytest.param("rope_theta", 10**400, id="rope_theta-huge"),
    ("partial_rotary_factor", 0.25),
    ("quantization_config", {"quant_method": "gptq"}),
    ("pretraining_tp", 2),
    ("pretraining_tp", True),
    ("sliding_window", 1024),
    ("tie_word_embeddings", "yes"),
    ("tie_word_embeddings", 1),
    ("head_dim", 7),
    ("head_dim", 0),
    ("hidden_size", 26),
    ("hidden_size", -24),
    ("hidden_size", 24.0),
    ("hidden_size", True),
    ("hidden_size", ...),
    ("hidden_size", float("nan")),
    ("intermediate_size", 0),
    ("intermediate_size", ...),
    ("num_hidden_layers", "2"),
    ("num_hidden_layers", ...),
    ("num_hidden_layers", 2**40),
    ("num_attention_heads", 0),
    ("num_attention_heads", ...),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", -1),
    ("max_position_embeddings", ...),
    ("max_position_embeddings", None),
    ("max_position_embeddings", 48.5),
    ("rms_norm_eps", 0.0),
    ("rms_norm_eps", float("inf")),
    ("rms_norm_eps", "1e-5"),
    ("eos_token_id", 256),
    ("eos_token_id", -1),
    ("eos_token_id", True),
    ("eos_token_id", 0.0),
    ("eos_token_id", [0, 3]),
    ("eos_token_id", []),
    ("eos_token_id", [False]),
]


@pytest.mark.parametrize(("field", "value"), REFUSED_FIELDS)
def test_a_model_that_is_not_served_is_refused_by_field(
    directory: Path, field: str, value: Any
) -> None:
    change_json(directory / "config.json", **{field: value})
    assert_refused(lambda: load_model(directory), f"{directory}/config.json", field)


def test_conflicting_rotary_bases_are_refused(directory: Path) -> None:
    change_json(directory / "config.json", rope_theta=10000.0)
    assert_refused(lambda: read_model_config(directory), "rope_theta", "rope_parameters")


def test_an_end_byte_of_generation_config_json_is_refused_in_its_name(directory: Path) -> None:
    change_json(directory / "config.json", eos_token_id=...)
    change_json(directory / "generation_config.json", eos_token_id=[1, 2])
    assert_refused(lambda: load_model(directory), "generation_config.json", "eos_token_id")


NOT_OBJECTS = [b"", b"{", b"[]", b"null", b'{"a": \xff}', b"[" * 100_000, b'{"a": 1' + b"0" * 5000]


@pytest.mark.parametrize("content", NOT_OBJECTS, ids=lambda content: str(content[:8]))
@pytest.mark.parametrize("name", ["config.json", "prophet_config.json"])
def test_a_file_that_holds_no_json_object_is_refused(
    directory: Path, name: str, content: bytes
) -> None:
    (directory / name).write_bytes(content)
    load = load_model if name == "config.json" else load_prophet
    assert_refused(lambda: load(directory), str(directory / name), "JSON")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    assert_refused(lambda: load_model(tmp_path), str(tmp_path / "config.json"), "missing")
    absent = tmp_path / "absent"
    assert_refused(lambda: read_model_config(absent), str(absent / "config.json"), "missing")


# --- tensors ---


def spoiled(value: float) -> Tensor:
    weight = torch.zeros(16, 24)
    weight[3, 5] = value
    return weight


KEY = f"{BLOCK_0}.self_attn.k_proj.weight"
REFUSED_TENSORS = [
    (KEY, ..., "missing"),
    ("lm_head.weight", ..., "missing"),
    ("model.layers.1.input_layernorm.weight", ..., "missing"),
    (KEY, torch.zeros(24, 16), "shape (24, 16), expected (16, 24)"),
    (KEY, torch.zeros(24, 24), "shape"),
    ("model.norm.weight", torch.zeros(24, 1), "shape"),
    ("model.norm.weight", torch.tensor(1.0), "shape"),
    ("model.embed_tokens.weight", torch.zeros(257, 24), "shape"),
    (KEY, torch.zeros(16, 24, dtype=torch.int64), "I64"),
    (KEY, torch.zeros(16, 24, dtype=torch.int8), "I8"),
    (KEY, torch.zeros(16, 24, dtype=torch.bool), "BOOL"),
    (KEY, torch.zeros(16, 24, dtype=torch.float8_e4m3fn), "F8_E4M3"),
    (KEY, spoiled(float("nan")), "not finite"),
    (KEY, spoiled(float("-inf")), "not finite"),
    (KEY, spoiled(1).double() * 1e300, "not finite"),
    ("model.layers.2.input_layernorm.weight", torch.zeros(24), "not expected"),
    (f"{BLOCK_0}.self_attn.q_proj.bias", torch.zeros(32), "not expected"),
]


@pytest.mark.parametrize(("name", "tensor", "reason"), REFUSED_TENSORS)
def test_a_tensor_that_is_not_the_models_is_refused_by_name(
    directory: Path, name: str, tensor: Any, reason: str
) -> None:
    path = directory / "model.safetensors"
    change_tensors(path, **{name: tensor})
    assert_refused(lambda: load_model(directory), str(path), name, reason)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("missing", ..., "missing"),
        ("projection.weight", torch.zeros(16, 23), "shape"),
        ("head.weight", torch.zeros(256, 16, dtype=torch.int32), "I32"),
        ("stack.blocks.1.down.weight", torch.full((16, 12), torch.nan), "not finite"),
        ("extra", torch.zeros(1), "not expected"),
    ],
)
def test_a_tensor_that_is_not_the_prophets_is_refused_by_name(
    directory: Path, name: str, tensor: Any, reason: str
) -> None:
    path = directory / "prophet.safetensors"
    change_tensors(path, **{name: tensor})
    assert_refused(lambda: load_prophet(directory), str(path), f"tensor {name}", reason)
    assert_same_weights(load_model(directory), built()[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_any_float_type_is_read(directory: Path, dtype: torch.dtype) -> None:
    path = directory / "model.safetensors"
    tensors = read_tensors(path)
    change_tensors(path, **{name: t.to(dtype) for name, t in tensors.items()})
    stored = tensors["model.norm.weight"].to(dtype)
    assert torch.equal(load_model(directory).stack.norm.weight, stored.float())
    assert torch.equal(load_model(directory, dtype).stack.norm.weight, stored)


def test_stored_rotary_frequencies_are_ignored(directory: Path) -> None:
    name = f"{BLOCK_0}.self_attn.rotary_emb.inv_freq"
    change_tensors(directory / "model.safetensors", **{name: torch.ones(4)})
    assert_same_weights(load_model(directory), built()[0])


def test_a_head_next_to_tied_embeddings_has_to_be_the_embedding(tmp_path: Path) -> None:
    model, _ = built(replace(MODEL, tie_word_embeddings=True))
    save_checkpoint(tmp_path, model, None, torch.float32)
    path, embedding = tmp_path / "model.safetensors", model.embedding.weight.detach()
    change_tensors(path, lm_head__weight=embedding)
    assert_same_weights(load_model(tmp_path), model)
    for other in (embedding + 1e-3, embedding[:, :-1], torch.full_like(embedding, torch.nan)):
        change_tensors(path, lm_head__weight=other.contiguous())
        assert_refused(lambda: load_model(tmp_path), str(path), "lm_head.weight")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "prophet.safetensors"])
def test_a_truncated_tensor_file_is_refused(directory: Path, name: str, kept: int) -> None:
    path = directory / name
    path.write_bytes(path.read_bytes()[:kept])
    load = load_prophet if name == "prophet.safetensors" else load_model
    assert_refused(lambda: load(directory), str(path), "whole safetensors file")


def test_more_layers_than_tensors_are_refused_before_they_are_built(directory: Path) -> None:
    for name in ("config.json", "prophet_config.json"):
        change_json(directory / name, num_hidden_layers=2**31 - 1)
    for load, name in ((load_model, "model"), (load_prophet, "prophet")):
        refused = f"{name}.safetensors"
        assert_refused(lambda load=load: load(directory), refused, "num_hidden_layers")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "model.pth"])
def test_pickles_are_never_loaded(directory: Path, name: str) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(24)}, directory / name)
    assert_refused(
        lambda: load_model(directory), "model.safetensors is missing", name, "never loaded"
    )


def test_a_pickle_under_the_name_of_a_tensor_file_is_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    torch.save({"model.norm.weight": torch.ones(24)}, path)
    assert_refused(lambda: load_model(directory), str(path), "safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "prophet.safetensors"])
def test_missing_tensor_files_are_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    load = load_prophet if name == "prophet.safetensors" else load_model
    assert_refused(lambda: load(directory), f"{directory / name} is missing")


# --- shards ---

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(directory: Path) -> Path:
    path = directory / "model.safetensors"
    tensors = read_tensors(path)
    path.unlink()
    shards = {FIRST: sorted(tensors)[:7], SECOND: sorted(tensors)[7:]}
    for shard, held in shards.items():
        (directory / shard).write_bytes(tensor_file({name: tensors[name] for name in held}))
    places = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_shards_are_read_as_one_file(sharded: Path) -> None:
    assert_same_weights(load_model(sharded), built()[0])


@pytest.mark.parametrize(
    "shard",
    [f"../{FIRST}", f"sub/{FIRST}", f"sub\\{FIRST}", "..", "", "/etc/x.safetensors", "m.bin", 3],
)
def test_an_index_cannot_name_files_elsewhere(sharded: Path, shard: Any) -> None:
    index = sharded / "model.safetensors.index.json"
    shutil.copy(sharded / FIRST, sharded.parent)
    places = {**read_json(index)["weight_map"], KEY: shard}
    change_json(index, weight_map=places)
    assert_refused(lambda: load_model(sharded), str(index), repr(shard), KEY)


def test_an_index_that_names_a_missing_shard_is_refused(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert_refused(lambda: load_model(sharded), "model.safetensors.index.json", SECOND)


def test_an_index_without_places_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    change_json(index, weight_map=...)
    assert_refused(lambda: load_model(sharded), str(index), "weight_map")


def test_a_tensor_that_is_not_in_its_shard_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    change_json(index, weight_map={**read_json(index)["weight_map"], "lm_head.weight": SECOND})
    assert_refused(lambda: load_model(sharded), SECOND, "lm_head.weight")


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    change_tensors(sharded / SECOND, lm_head__weight=torch.zeros(256, 24))
    assert_refused(lambda: load_model(sharded), SECOND, "lm_head.weight", FIRST)


# --- the index, for others ---

INDEX = "model.safetensors.index.json"


def read_by_others(directory: Path) -> dict[str, Tensor]:
    """What vLLM and SGLang read: every *.safetensors, of which an index, if any, picks some."""
    files = set(directory.glob("*.safetensors"))
    if (directory / INDEX).is_file():
        files &= {directory / name for name in read_json(directory / INDEX)["weight_map"].values()}
    assert files
    return {name: tensor for path in files for name, tensor in read_tensors(path).items()}


@pytest.mark.parametrize("tied", [False, True])
def test_other_loaders_meet_the_model_alone(tmp_path: Path, tied: bool) -> None:
    model, prophet = built(replace(MODEL, tie_word_embeddings=tied))
    save_checkpoint(tmp_path, model, prophet)
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path, local_files_only=True))
    expected = {name for name, _ in theirs.named_parameters()}
    found = read_by_others(tmp_path)
    assert found.keys() == expected
    index = read_json(tmp_path / INDEX)
    assert index["weight_map"] == dict.fromkeys(expected, "model.safetensors")
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in found.values())}
    (tmp_path / INDEX).unlink()
    assert read_by_others(tmp_path).keys() > expected  # so the index is what keeps it away


def test_an_index_may_name_one_file(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    assert_refused(
        lambda: load_model(directory), f"{directory}/model.safetensors is missing", INDEX
    )
    places = read_json(directory / INDEX)["weight_map"]
    change_json(directory / INDEX, weight_map=dict.fromkeys(places, "weights.safetensors"))
    assert_same_weights(load_model(directory), built()[0])


@pytest.mark.parametrize("older", [None, {"weight_map": {"other": FIRST}}])
def test_a_prophet_beside_a_model_in_one_file_brings_an_index(
    saved: Path, tmp_path: Path, older: Any
) -> None:
    model, prophet = built()
    save_checkpoint(tmp_path, model, None, torch.float32)
    (tmp_path / INDEX).unlink()
    if older:
        (tmp_path / INDEX).write_text(json.dumps(older))
    save_prophet(tmp_path, prophet, torch.float32)
    assert names(tmp_path) == FILES | PROPHET_FILES
    assert (tmp_path / INDEX).read_bytes() == (saved / INDEX).read_bytes()


def test_a_prophet_beside_shards_leaves_their_index(sharded: Path) -> None:
    index = (sharded / INDEX).read_bytes()
    save_prophet(sharded, built()[1])
    assert (sharded / INDEX).read_bytes() == index


def test_the_shipped_checkpoint_is_what_is_written_today(tmp_path: Path) -> None:
    shipped = Path(__file__).parent.parent / "checkpoints" / "default"
    save_checkpoint(
        tmp_path, load_model(shipped, torch.bfloat16), load_prophet(shipped, torch.bfloat16)
    )
    assert names(tmp_path) == FILES | PROPHET_FILES
    assert [
        n for n in names(tmp_path) if (tmp_path / n).read_bytes() != (shipped / n).read_bytes()
    ] == []


# --- the prophet's configuration ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_hidden_size", 32),
        ("kind", "medusa"),
        ("kind", 3),
        ("kind", "parallel"),  # with two layers
        ("state", "embedding"),
        ("format_version", 2),
        ("format_version", ...),
        ("format_version", True),
        ("head_dim", 7),
        ("num_key_value_heads", 4),
        ("hidden_size", 16.0),
        ("leading_states", 0),
        ("draft_length", ...),
        ("rope_theta", ...),
        ("rms_norm_eps", float("nan")),
        ("hidden_sizes", 16),
        ("block", {}),
    ],
)
def test_a_prophet_that_is_not_served_is_refused_by_field(
    directory: Path, field: str, value: Any
) -> None:
    change_json(directory / "prophet_config.json", **{field: value})
    assert_refused(lambda: load_prophet(directory), f"{directory}/prophet_config.json", field)


# --- writing ---


def failing(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture(params=["replace", "fsync"])
def failing_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, request.param, failing)
        yield


@pytest.mark.usefixtures("failing_disk")
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert_refused(lambda: write_atomically(path, b"new"), str(path), "No space left")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


@pytest.mark.usefixtures("failing_disk")
def test_a_failed_save_leaves_the_old_checkpoint(directory: Path, saved: Path) -> None:
    model, prophet = built(replace(MODEL, eos_token_id=1))
    assert_refused(lambda: save_checkpoint(directory, model, prophet), str(directory))
    assert names(directory) == names(saved)
    for name in names(saved):
        assert (directory / name).read_bytes() == (saved / name).read_bytes()


def test_a_write_replaces_the_file_with_ordinary_rights(tmp_path: Path) -> None:
    path, ordinary = tmp_path / "file", tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    for data in (b"", b"1", b"22" * 100_000):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert path.stat().st_mode == ordinary.stat().st_mode
    assert names(tmp_path) == {"file", "ordinary"}


def test_a_write_is_on_disk_before_and_after_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        assert source.read_bytes() == b"data"
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename)
    write_atomically(tmp_path / "file", b"data")
    assert events == ["file", "rename", "directory"]


def test_a_new_directory_with_a_config_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    rename = os.replace

    def record_rename(source: Path, target: Path) -> None:
        written.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "replace", record_rename)
    save_checkpoint(tmp_path, *built())
    assert {*written} == FILES | PROPHET_FILES
    assert written[-1] == "config.json"
    assert written.index("prophet_config.json") > written.index("prophet.safetensors")


def test_a_place_that_cannot_hold_a_checkpoint_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"")
    assert_refused(lambda: save_checkpoint(place, built()[0], None), str(place))
    assert_refused(lambda: write_atomically(place / "x", b""), str(place / "x"))
    assert place.read_bytes() == b""


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    model, prophet = built()
    assert_refused(lambda: save_checkpoint(place, model, prophet, torch.int8), "model.safetensors")
    odd = ByteLlama(replace(MODEL, block=replace(MODEL_BLOCK, hidden_size=26)))
    assert_refused(lambda: save_checkpoint(place, odd, None), "config.json", "hidden_size")
    other = ByteLlama(replace(MODEL, block=replace(MODEL_BLOCK, hidden_size=28)))
    assert_refused(
        lambda: save_checkpoint(place, other, prophet), "prophet_config.json", "model_hidden_size"
    )
    prophet.missing.data[0, 0] = torch.nan
    assert_refused(
        lambda: save_checkpoint(place, model, prophet), "prophet.safetensors", "tensor missing"
    )
    assert not place.exists()


# --- transformers ---


def counting_model(eos: int | None) -> ByteLlama:
    """Its next byte is the last one + 1: blocks write nothing, the head looks one row back."""
    block = BlockConfig(
        hidden_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=8,
    )
    model = ByteLlama(ModelConfig(block, 1, 64, eos_token_id=eos))
    for parameter in model.stack.blocks.parameters():
        parameter.data.zero_()
    model.embedding.weight.data = torch.eye(256)
    model.head.weight.data = torch.eye(256).roll(1, 0)
    return model


@pytest.mark.parametrize(("eos", "last"), [(None, 20), (0, 20), (11, 11)])
def test_transformers_generates_through_every_byte_but_the_end(
    tmp_path: Path, eos: int | None, last: int
) -> None:
    save_checkpoint(tmp_path, counting_model(eos), None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    prompt = torch.tensor([[0]])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )
    assert found[0].tolist() == list(range(last + 1))


@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_writes_is_read(tmp_path: Path, tied: bool) -> None:
    model, _ = built(replace(MODEL, tie_word_embeddings=tied, eos_token_id=0))
    save_checkpoint(tmp_path / "ours", model, None, torch.float32)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "ours", local_files_only=True)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.config == model.config
    assert_same_weights(loaded, model)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    assert_same_weights(load_model(tmp_path / "shards"), model)
