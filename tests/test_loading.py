"""From settings to an engine that answers, with a tiny checkpoint on disk; and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import Receiver
from test_scheduler import submission
from tiny import agreeing_prophet, tiny_model

from server.draft_lengths import LOOKUP_LENGTHS
from server.loading import load_engine, pick_device, pick_dtype
from server.messages import Exactness
from server.profiling import measure_costs
from server.settings import Settings
from specdec.build import build_decoder
from specdec.checkpoint import save_checkpoint
from specdec.native_stack import NativeModel


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = tiny_model()
    save_checkpoint(tmp_path, model, agreeing_prophet(model), torch.float32)
    return tmp_path


def settings(checkpoint: Path, **fields: object) -> Settings:
    return Settings(
        _cli_parse_args=False,  # type: ignore[call-arg]
        checkpoint=checkpoint,
        device="cpu",
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int8"])
def test_a_loaded_engine_gives_both_modes_the_same_bytes(checkpoint: Path, dtype: str) -> None:
    engine = load_engine(settings(checkpoint, dtype=dtype, max_batch=2))
    try:
        outputs = []
        for name, draft_length in (("base", 0), ("speculative", 5)):
            receiver = Receiver()
            engine.submit(
                submission(name, prompt=b"abc", max_tokens=60, draft_length=draft_length, eos=None),
                receiver,
            )
            receiver.finished()
            outputs.append(receiver.output)
        assert len(outputs[0]) == 60
        if engine.info.exactness is Exactness.EXACT or dtype == "float64":
            assert outputs[0] == outputs[1]
        assert engine.info.dtype == dtype
        assert engine.info.longest_draft == 16
        assert engine.info.context == 160
        assert engine.info.model_name == checkpoint.name
    finally:
        engine.stop()


def test_a_budget_for_the_cache_bounds_the_slots(tmp_path: Path) -> None:
    # 2 layers, 1 head of 16 for keys and for values, 512 places of 8 bytes: 256 KiB a slot
    save_checkpoint(tmp_path, tiny_model(), None, torch.float32)
    for budget, slots in ((1, 4), (2, 8), (100, 16)):
        engine = load_engine(settings(tmp_path, cache_mib=budget, max_batch=16, dtype="float64"))
        engine.stop()
        assert engine.info.max_batch == slots
        assert engine.info.cache_bytes == slots * 256 * 1024


def test_a_budget_that_holds_no_slot_is_refused(tmp_path: Path) -> None:
    model = tiny_model(depth=12, context=1500)
    save_checkpoint(tmp_path, model, None, torch.float32)
    with pytest.raises(ValueError, match="cache_mib: 1 MiB hold no slot, one takes 5"):
        load_engine(settings(tmp_path, cache_mib=1, dtype="float64"))


def test_a_prophet_may_lie_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    alone, model = tmp_path / "alone", tmp_path / "model"
    alone.mkdir()
    for name in ("prophet_config.json", "prophet.safetensors"):
        (checkpoint / name).rename(alone / name)
    save_checkpoint(model, tiny_model(), None, torch.float32)
    engine = load_engine(settings(model, prophet=alone))
    try:
        assert engine.info.longest_draft == 16
    finally:
        engine.stop()
    with pytest.raises(ValueError, match=f"prophet: {model} has none"):
        load_engine(settings(model, prophet=model))
    path = alone / "prophet_config.json"
    path.write_text(path.read_text().replace('"model_hidden_size": ', '"model_hidden_size": 1'))
    with pytest.raises(ValueError, match=f"{path}: model_hidden_size is 1"):
        load_engine(settings(model, prophet=alone))


def test_a_checkpoint_without_a_prophet_serves_base(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), None, torch.float32)
    engine = load_engine(settings(tmp_path, max_context=100))
    try:
        assert engine.info.longest_draft == 0
        assert engine.info.context == 100
        receiver = Receiver()
        engine.submit(submission("base", draft_length=0), receiver)
        assert receiver.finished().completion_tokens == 8
    finally:
        engine.stop()
    with pytest.raises(ValueError, match="mode: speculative"):
        load_engine(settings(tmp_path, mode="speculative"))


def test_what_cannot_be_served_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_context: 161 exceeds"):
        load_engine(settings(checkpoint, max_context=161))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_engine(settings(tmp_path / "nowhere"))
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_engine(settings(checkpoint))


def test_devices_and_types_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: cuda"):
        pick_device("cuda")
    cpu = torch.device("cpu")
    assert pick_dtype("float64", cpu, "auto") == torch.float64
    assert pick_dtype("auto", torch.device("cuda"), "auto") == torch.bfloat16
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert pick_dtype("auto", cpu, "torch") == torch.float32
    monkeypatch.setattr("server.loading.runs_natively", lambda *_: True)
    assert pick_dtype("auto", cpu, "auto") == torch.bfloat16
    monkeypatch.setattr("server.loading.runs_natively", lambda *_: False)
    assert pick_dtype("auto", cpu, "auto") == torch.float32


@pytest.mark.parametrize(
    ("context", "lengths"), [(2, None), (20, None), (40, (0, 1)), (60, (0, 1, 2, 3, 4))]
)
@pytest.mark.parametrize("longest_lookup", [0, 3])
def test_a_short_context_times_fewer_lengths(
    context: int, lengths: tuple[int, ...] | None, longest_lookup: int
) -> None:
    model = tiny_model()
    decoder = build_decoder(
        model,
        agreeing_prophet(model),
        slots=2,
        context=context,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    costs = measure_costs(decoder, longest_lookup)
    assert (costs and costs.lengths) == lengths
    if costs and lengths:
        assert costs.lookup_lengths == tuple(n for n in lengths if n <= longest_lookup)
        assert all(costs.seconds(2, gamma) > 0 for gamma in lengths)


def test_what_is_looked_up_is_timed_without_a_prophet_too() -> None:
    options: dict[str, Any] = {"slots": 1, "device": torch.device("cpu"), "dtype": torch.float32}
    decoder = build_decoder(tiny_model(), None, context=160, **options)
    costs = measure_costs(decoder, 16)
    assert costs is not None
    assert costs.lengths == (0,)
    assert costs.lookup_lengths == (0, *LOOKUP_LENGTHS)
    assert costs.lookup_shares(1)[16] >= costs.plain(1) > 0  # how much is for the machine to say
    assert measure_costs(decoder, 0) is None


@pytest.mark.parametrize(("context", "far"), [(700, 564), (2048, 1024), (300, None)])
def test_costs_are_measured_at_two_lengths_of_text(
    context: int, far: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(context=context)
    options: dict[str, Any] = {"slots": 2, "device": torch.device("cpu"), "dtype": torch.float32}
    decoder = build_decoder(model, agreeing_prophet(model), context=context, **options)
    places: set[int] = set()

    def seconds(decoder: Any, rows: int, gamma: int, lookup: object) -> list[float]:
        assert {decoder.to_prefill(slot) for slot in range(rows)} == {0}
        behind = decoder.places_held // rows + 1
        places.add(behind)
        return [rows + gamma + 0.01 * behind]

    monkeypatch.setattr("server.profiling._seconds", seconds)
    monkeypatch.setattr("server.profiling.LONGEST_S", math.inf)
    costs = measure_costs(decoder, 16)
    assert costs is not None
    near = min(places)
    assert max(places) == (far or near)
    before = costs.seconds(2, 3)
    costs.lie_behind(near + 640)
    assert costs.seconds(2, 3) == pytest.approx(before + (6.4 if far else 0.0))


def test_lookups_are_for_the_compiled_core_and_may_be_forbidden(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), None, torch.float32)
    for kernels, asked, expected in (
        ("auto", 16, 16),
        ("auto", 3, 3),
        ("auto", 0, 0),
        ("torch", 16, 0),
    ):
        given = settings(tmp_path, kernels=kernels, lookup_length=asked, dtype="float32")
        engine = load_engine(given)
        engine.stop()
        assert engine.info.longest_lookup == expected


def test_unlikely_drafts_are_omitted_and_the_output_is_the_same(checkpoint: Path) -> None:
    """By the compiled core; on torch's operations all are made."""
    outputs, drafted = set(), {}
    for kernels, p_min in (("auto", 0.0), ("auto", None), ("auto", 1.0), ("torch", 1.0)):
        given = settings(checkpoint, kernels=kernels, draft_p_min=p_min, dtype="float32")
        engine = load_engine(given)
        try:
            native = isinstance(engine._decoder.model, NativeModel)
            receiver = Receiver()
            engine.submit(
                submission("a", prompt=b"abc", max_tokens=100, draft_length=8, eos=None), receiver
            )
            speculation = receiver.finished().speculation
        finally:
            engine.stop()
        if native or kernels == "torch":
            drafted[kernels, p_min] = speculation.drafted / speculation.rounds
        if kernels == "auto":
            outputs.add(receiver.output)
    assert len(outputs) == 1
    assert drafted["torch", 1.0] > 6
    if ("auto", 0.0) in drafted:
        assert drafted["auto", 0.0] > 6
        assert drafted["auto", 1.0] <= drafted["auto", None] <= drafted["auto", 0.0]
        assert drafted["auto", 1.0] < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_logits_overflow_is_refused_by_name(tmp_path: Path, dtype: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.mul_(1e38 / model.head.weight.abs().max())
    save_checkpoint(tmp_path, model, None, torch.float32)
    named = rf"{tmp_path}: the model's logits overflow in {dtype}.* 1e\+38, in lm_head.weight"
    with pytest.raises(ValueError, match=named):
        load_engine(settings(tmp_path, dtype=dtype))
