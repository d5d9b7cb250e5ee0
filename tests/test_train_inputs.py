"""What the trainer refuses before the first step: flags, shapes, devices, saves that are none."""

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CPU, FROZEN, TINY, command, refusal, run, weights, write_words

import specdec.hf_config
from train.__main__ import parse
from train.config import ModelShape, TrainConfig
from train.limits import RANGES, flag
from train.optimizer import Optimizers
from train.save import read_save

pytestmark = pytest.mark.usefixtures("short_cards")

RECORDS: dict[str, Any] = {**vars(TrainConfig()), **vars(ModelShape())}
NUMBERS = sorted(
    [name for name, value in RECORDS.items() if type(value) in (int, float)]
    + ["max_steps", "mix", "windows", "window_shares"]
)
SENSELESS = ["0", "-1", "-0.5", "nan", "inf", "-inf", "9" * 40, "1e40", "", "many"]

MAY_BE_ZERO = {
    *("data_limit", "validation_fraction", "starts", "prophet_curriculum", "muon_momentum"),
    *("weight_decay", "warmup", "decay_fraction", "clip", "seed", "demonstrate_every", "eos_byte"),
}
ALLOWED = {(name, "0") for name in MAY_BE_ZERO} | {
    ("eos_byte", "-1"),
    *(("rope_theta", huge) for huge in ("9" * 40, "1e40")),  # as config.json may have it
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.bin")


@pytest.fixture(scope="module")
def paused(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that has made one."""
    out = tmp_path_factory.mktemp("paused")
    run("--data", text, *TINY, "--steps", 2, "--max-steps", 1, "--out", out)
    return out


@pytest.mark.parametrize("value", SENSELESS)
@pytest.mark.parametrize("name", NUMBERS)
def test_senseless_numbers_are_refused_by_flag(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    values = [value] * (2 if name in ("windows", "window_shares") else 1)
    given = [
        "--data",
        str(text),
        *TINY,
        "--steps",
        "1",
        "--out",
        str(tmp_path / "run"),
        flag(name),
        *values,
    ]
    if (name, value) in ALLOWED:
        config, _ = parse(given)
        assert {**vars(config), **vars(config.shape)}[name] == float(value)
    else:
        assert flag(name) in refusal(capsys, *given)
    assert not (tmp_path / "run").exists()


def test_every_number_but_the_readers_own_has_a_range() -> None:
    sizes = {item.name for item in fields(ModelShape)} - {"heads", "eos_byte"}
    assert {*NUMBERS} - {"max_steps"} - sizes == RANGES.keys()


@pytest.mark.parametrize(
    "name",
    ["data", "out", "validation", "test", "start_from", "device", "dtype", "split", "preset"],
)
def test_empty_strings_are_refused_by_flag(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As of a variable of the shell that is not set: neither this directory nor a default."""
    given = ["--data", text, "--out", tmp_path / "run", *TINY, flag(name), ""]
    assert flag(name) in refusal(capsys, *given)
    assert "--checkpoint" in refusal(capsys, "prophet", "--data", text, *FROZEN, "--checkpoint", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hidden-size 258 --heads 4", "--hidden-size, --heads: hidden_size (258) must be a mul"),
        ("--hidden-size 6", "--hidden-size, --heads: BlockConfig.head_dim must be even"),
        ("--rope-theta inf", "--rope-theta: rope_theta must be a finite number above 0, not inf"),
        ("--rope-theta 0", "--rope-theta: BlockConfig.rope_theta must be above 0"),
        ("--heads 4 --kv-heads 3", "--heads, --kv-heads: BlockConfig.num_attention_heads (4) mus"),
        ("--context 2147483648", "--context: max_position_embeddings must be a whole number"),
        ("--depth 0", "--depth: ModelConfig.num_hidden_layers must be above 0"),
        ("--prophet-depth 0", "--prophet-depth: ProphetConfig.num_hidden_layers must be above 0"),
        ("--leading-states 0", "--leading-states: ProphetConfig.leading_states must be above 0"),
        ("--draft-length 17", "--draft-length: ProphetConfig.draft_length must be at most 16"),
        ("--leading-states 64", "--windows: must exceed the --leading-states of 64"),
        ("--weight-decay 60", "--weight-decay: 60.0 at a rate of 0.02"),
        # what has room in a file, but in no machine
        ("--context 2147483647 --hidden-size 65536", "--context: the model needs at least"),
        ("--hidden-size 2147483644", "--hidden-size, --depth, --intermediate-size, --context: "),
        ("--depth 2147483647", "--hidden-size, --depth, --intermediate-size, --context: the mod"),
        ("--intermediate-size 2147483647", "--intermediate-size, --context: the model needs at"),
        ("--prophet-depth 2147483647", "--prophet-depth: the prophet needs at least"),
        ("--batch 2147483647", "--batch, --windows: a batch needs at least"),
    ],
)
def test_shapes_that_no_export_can_have_are_refused_before_the_first_step(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    given = ["--data", text, *TINY, "--out", tmp_path / "run", *flags.split()]
    assert message in refusal(capsys, *given)
    assert not (tmp_path / "run").exists()


def test_what_reading_config_json_refuses_is_refused_whatever_it_is(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's own check is asked, not a copy of its rules."""
    given = ["--data", text, *TINY, "--out", tmp_path / "run"]
    monkeypatch.setattr(specdec.hf_config, "LARGEST_SIZE", 511)
    assert "--context: max_position_embeddings" in refusal(capsys, *given)
    monkeypatch.setitem(specdec.hf_config.ACCEPTED, "hidden_act", ("gelu",))  # type: ignore[arg-type]
    assert "hidden_act is 'silu'" in refusal(capsys, *given)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prophet-depth 0", "--prophet-depth: "),
        ("--draft-length 17", "--draft-length: "),
        ("--leading-states -1", "--leading-states: "),
        ("--prophet-kind parallel --prophet-depth 2", "--prophet-depth, --prophet-kind: "),
        ("--windows 513 513", "--windows: 513 exceeds the model's context of 512"),
        ("--prophet-depth 2147483647", "--prophet-depth: the prophet needs at least"),
        ("--hidden-size 64", "unrecognized arguments: --hidden-size 64"),
        ("--starts 0", "--starts: "),
    ],
)
def test_a_prophet_that_no_export_can_have_is_refused_before_the_first_step(
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
    paused: Path,
) -> None:
    checkpoint = paused / "checkpoint"
    if not checkpoint.exists():
        run("--data", text, *TINY, "--steps", 2, "--out", paused, "--export")
    given = ["prophet", "--checkpoint", checkpoint, "--data", text, *FROZEN]
    assert message in refusal(capsys, *given, "--out", tmp_path / "run", *flags.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda:99", "tape", "meta", "cuda:-1", "fpga", ""])
def test_a_device_that_is_not_there_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    given = ["--data", text, *TINY, "--out", tmp_path / "run", "--device", device]
    assert refusal(capsys, *given).startswith(f"--device: {device}")


def test_an_output_that_is_a_file_is_refused(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", text, *TINY, "--out", text]
    assert refusal(capsys, *given) == f"--out: {text} is not a directory"


def test_a_clip_of_zero_is_no_clipping() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    adam = TrainConfig(data=("words",), optimizer="adam", clip=0)
    optimizers = Optimizers(adam, torch.float32, layer)
    for clip, left in ((0.0, 8.0), (20.0, 8.0), (4.0, 2.0)):
        layer.weight.grad = torch.full((2, 2), 8.0)
        assert optimizers.clip(clip) == 16
        torch.testing.assert_close(layer.weight.grad, torch.full((2, 2), left))


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("words.txt", b"words")
    return out.getvalue()


def saved(state: object) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def changed(**fields: object) -> Callable[[dict[str, Any]], bytes]:
    return lambda state: saved({**state, **fields})


def configured(old: str, new: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda state: saved({**state, "config": state["config"].replace(old, new, 1)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: b"", "is not a whole save"),
        (lambda state: b"words of somebody else", "is not a whole save"),
        (lambda state: zipped(), "is not a whole save"),
        (lambda state: saved(state)[:5000], "is not a whole save"),
        (lambda state: saved([1, 2]), "is not a save of a run"),
        (lambda state: saved({"weight": torch.ones(1)}), "is not a save of a run: config, curve"),
        (lambda state: saved(Path("object")), "is not a whole save"),
        (changed(format=2), "is a save of format 2, of another version"),
        (changed(config="{"), "cannot be taken as a save of a run"),
        (changed(config="[]"), "cannot be taken as a save of a run"),
        (configured('"steps"', '"stages"'), "does not know: stages"),
        (configured('"depth"', '"layers"'), "does not know: layers"),
        (configured('"clip": 1.0', '"clip": -1.0'), "--clip: must be at least 0"),
        (changed(model={}), "cannot be taken as a save of a run"),
        (changed(optimizers=[]), "cannot be taken as a save of a run"),
        (changed(earlier="{"), "cannot be taken as a save of a run"),
        (changed(step="two"), "cannot be taken as a save of a run"),
    ],
)
def test_a_foreign_damaged_or_newer_save_is_refused_by_name(
    text: Path,
    tmp_path: Path,
    paused: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, Any]], bytes],
    message: str,
) -> None:
    path = tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    path.write_bytes(spoil(read_save(paused / "last.pt", CPU)))
    given = ["--data", text, *TINY, "--steps", 2]
    for more in (
        ["--out", path.parent],
        ["--out", path.parent, "--export"],
        ["--start-from", path.parent, "--out", tmp_path / "new"],
        ["--start-from", path, "--out", tmp_path / "new"],
    ):
        said = refusal(capsys, *given, *more)
        assert str(path) in said
        assert message in said


def test_a_checkpoint_that_is_damaged_is_refused_by_name(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    given = ["--data", text, *TINY, "--out", tmp_path / "run", "--start-from", tmp_path]
    assert str(tmp_path / "config.json") in refusal(capsys, *given)
    assert "is neither a run nor" in refusal(capsys, *given[:-1], tmp_path / "missing")


def test_a_run_that_diverged_goes_on_from_its_best_save_with_other_rates(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", text, *TINY, "--save-every", 1, "--evaluate-every", 1, "--warmup", 0]
    flags += ["--steps", 8, "--weight-decay", 0]
    run(*flags, "--out", tmp_path / "good", "--max-steps", 4)
    out, best = tmp_path / "steep", tmp_path / "steep" / "best.pt"
    good = ["--start-from", tmp_path / "good", "--out", out]
    steep = ["--muon-rate", 1e6, "--adam-rate", 1e6, "--clip", 0]
    assert command(*flags, *good, *steep) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: the gradient's norm at step " in said
    assert said.endswith(
        f"the last save is kept; --start-from {best} goes on with other rates in another --out"
    )
    for path in (best, out / "last.pt"):
        assert all(tensor.isfinite().all() for tensor in weights(path).values())
    # the same directory is of the run with the old rates
    assert "--muon-rate was 1000000.0, is 0.02" in refusal(capsys, *flags, *good)

    began = ["--start-from", best, "--max-steps", 1, "--out", tmp_path / "gentle"]
    run(*flags, *began, "--muon-rate", 1e-9, "--adam-rate", 1e-9)
    gentle = weights(tmp_path / "gentle" / "last.pt")
    for name, tensor in weights(best).items():
        torch.testing.assert_close(gentle[name], tensor, rtol=0, atol=1e-5)
    earlier = json.loads(read_save(tmp_path / "gentle" / "last.pt", CPU)["earlier"])
    assert [phase["steps"] for phase in earlier] == [4, read_save(best, CPU)["step"]]
    # weights alone: no momentum of the steps that led astray, so another optimizer will do
    run(*flags, *began[:-1], tmp_path / "adam", "--optimizer", "adam")


def test_weights_that_are_not_finite_are_not_saved_and_not_started_from(
    text: Path, tmp_path: Path, paused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_save(paused / "last.pt", CPU)
    state["model"]["head.weight"].fill_(math.inf)
    (tmp_path / "last.pt").write_bytes(saved(state))
    given = ["--data", text, *TINY, "--steps", 2]
    said = refusal(capsys, *given, "--start-from", tmp_path, "--out", tmp_path / "new")
    assert said.endswith(f"not finite; {tmp_path / 'best.pt'} has the best")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.optimizer.Optimizers.step", lambda self, share: spoil(self))
        assert command(*given, "--save-every", 1, "--out", tmp_path / "broken") == 1
    assert "weights at step 1 are not finite; the last save is kept" in capsys.readouterr().err
    assert not (tmp_path / "broken" / "last.pt").exists()


def spoil(optimizers: Any) -> None:
    optimizers.parameters[0].data.fill_(math.nan)
