"""Whole runs by the command: presets, a frozen model, several processes, a kill, what is shown."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from specdec.checkpoint import load_model, load_prophet
from train.__main__ import HELP, main, parse
from train.config import SEED, ModelShape, TrainConfig
from train.save import read_save

CPU = torch.device("cpu")
TINY = [
    *("--batch", "4", "--windows", "64", "128", "--window-shares", "0.85", "0.15"),
    *("--validation-bytes", "512", "--test-prompts", "4"),
    *("--hidden-size", "32", "--depth", "2", "--heads", "2", "--kv-heads", "1"),
    *("--intermediate-size", "48", "--context", "512", "--draft-length", "5"),
    *("--device", "cpu", "--dtype", "float32"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["if ", "not ", "done: ", "return ", "x\n", "y\n", "for "]
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "words.bin"
    path.write_bytes("".join(draw.choice(words) for _ in range(8000)).encode())
    return path


def run(*arguments: object) -> None:
    assert main([str(part) for part in arguments]) == 0


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = read_save(path, CPU)
    return {f"{part}.{k}": v for part in ("model", "prophet") for k, v in state[part].items()}


def test_the_seed_preset_is_the_reference_recipe() -> None:
    config, _ = parse(["--preset", "seed", "--data", "enwik8.gz", "--out", "run"])
    assert config == SEED.__class__(**{**vars(SEED), "data": config.data})
    shape = config.shape
    assert (shape.hidden_size, shape.depth, shape.heads, shape.intermediate_size) == (
        512,
        10,
        8,
        1408,
    )
    assert shape.block.head_dim == 64
    assert (shape.prophet_depth, shape.leading_states) == (2, 2)
    assert (config.batch, config.accumulate, config.windows) == (4, 4, (512,))
    assert (config.optimizer, config.adam_rate, config.clip) == ("adam", 1e-4, 0.5)
    assert {config.rate_at(step) for step in (0, 1, 50_000, 99_999)} == {1.0}
    assert config.steps == 100_000
    assert config.data_limit == 95_000_000
    assert round(config.data_limit * (1 - config.validation_fraction)) == 90_000_000
    assert (config.evaluate_every, config.demonstrate_every) == (100, 100)
    assert config.starts == 1.0
    assert not config.detach
    assert config.window_at(99_999) == (4, 512)


def test_the_preset_can_be_changed_by_flags_and_trains_the_model_alone(
    text: Path, tmp_path: Path
) -> None:
    config, _ = parse(
        ["--preset", "seed", "--data", "x", "--out", "y", "--starts", "0", "--detach"]
    )
    assert config.starts == 0
    assert config.detach
    run("--data", text, "--out", tmp_path, *TINY, "--steps", 2, "--starts", 0)
    assert load_prophet(tmp_path / "checkpoint") is None


def test_the_demonstration_shows_both_paths_and_what_was_accepted(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data", text, "--out", tmp_path, *TINY, "--steps", 2, "--demonstrate-every", 2)
    log = (tmp_path / "demonstrations.log").read_text()
    shown = capsys.readouterr().out
    # the first before any step, as the reference does
    for part in ("step 0, prompt", "step 2, prompt from words.bin", "base, ", "speculative, "):
        assert part in log
        assert part in shown
    assert log.count("mean accepted ") == log.count(" of 5\n") == 2


def test_the_curve_is_a_table_and_a_picture(text: Path, tmp_path: Path) -> None:
    run("--data", text, "--out", tmp_path, *TINY, "--steps", 4, "--evaluate-every", 2)
    for directory in (tmp_path, tmp_path / "checkpoint"):
        rows = list(csv.DictReader((directory / "curve.csv").read_text().splitlines()))
        assert [row["step"] for row in rows] == ["0", "2", "4"]
        assert 0 < float(rows[-1]["words.bin/acceptance_5"]) < 1
        assert (directory / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_max_steps_pauses_and_the_same_command_goes_on(text: Path, tmp_path: Path) -> None:
    flags = ["--data", text, *TINY, "--steps", 6, "--accumulate", 2]
    run(*flags, "--out", tmp_path / "whole")
    for _ in range(3):
        assert not (tmp_path / "paused" / "checkpoint").exists()
        run(*flags, "--out", tmp_path / "paused", "--max-steps", 2)
    whole, paused = (weights(tmp_path / name / "last.pt") for name in ("whole", "paused"))
    assert all(torch.equal(whole[name], paused[name]) for name in whole)
    assert (tmp_path / "paused" / "checkpoint").exists()


def test_a_run_starts_from_the_weights_and_momentum_of_another(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", text, *TINY, "--save-every", 2, "--warmup", 0]
    run(*flags, "--out", tmp_path / "first", "--steps", 4, "--decay-fraction", 0)
    start = ["--start-from", tmp_path / "first", "--out", tmp_path / "second"]
    run(*flags, *start, "--steps", 6, "--max-steps", 3, "--seed", 1)
    run(*flags, *start, "--steps", 6, "--seed", 1)  # goes on from its own save, not from the first
    record = json.loads((tmp_path / "second" / "checkpoint" / "training.json").read_text())
    assert record["steps"] == 6
    assert [phase["steps"] for phase in record["earlier"]] == [4]
    assert record["config"]["start_from"] == "first"
    first, second = (weights(tmp_path / name / "last.pt") for name in ("first", "second"))
    cosine = torch.nn.functional.cosine_similarity
    name = "model.stack.blocks.0.qkv.weight"
    assert 0.9 < cosine(first[name].flatten(), second[name].flatten(), 0) < 1
    card = (tmp_path / "second" / "checkpoint" / "README.md").read_text()
    assert card.count("| model and prophet |") == 2

    other = ["--start-from", tmp_path / "first", "--out", tmp_path / "third", "--depth", 3]
    assert main([str(x) for x in (*flags, *other, "--steps", 2)]) == 1
    assert "another shape" in capsys.readouterr().err


def test_a_prophet_goes_on_for_another_model(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        run("--data", text, *TINY, "--out", tmp_path / name, "--steps", 1, "--seed", seed)
    shape = TINY.index("--hidden-size")
    flags = ["--data", text, *TINY[:shape], "--device", "cpu", "--dtype", "float32", "--steps", 1]
    checkpoints = [tmp_path / name / "checkpoint" for name in ("one", "two")]
    first, second = tmp_path / "first", tmp_path / "second"
    run("prophet", "--checkpoint", checkpoints[0], "--out", first, *flags)
    start = ["--start-from", first]
    run("prophet", "--checkpoint", checkpoints[1], "--out", second, *flags, *start)
    saves = [read_save(directory / "last.pt", CPU) for directory in (first, second)]
    kept = load_model(checkpoints[1]).state_dict()
    assert all(torch.equal(saves[1]["model"][name], kept[name]) for name in kept)
    assert not all(torch.equal(saves[0]["model"][name], kept[name]) for name in kept)
    cosine = torch.nn.functional.cosine_similarity
    heads = [save["prophet"]["head.weight"].flatten() for save in saves]
    assert 0.9 < cosine(*heads, 0) < 1

    joint = ["--data", text, *TINY, "--steps", 1, *start, "--out", tmp_path / "third"]
    assert main([str(x) for x in joint]) == 1
    assert "trained a prophet alone" in capsys.readouterr().err


def test_joint_training_then_distillation(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prophet that learnt beside a model goes on alone, the model kept as exported."""
    joint, distilled = tmp_path / "joint", tmp_path / "distilled"
    run("--data", text, *TINY, "--out", joint, "--steps", 3)
    shape = TINY.index("--hidden-size")
    flags = ["--data", text, *TINY[:shape], "--device", "cpu", "--dtype", "float32", "--steps", 1]
    flags = ["prophet", "--checkpoint", joint / "checkpoint", "--start-from", joint, *flags]
    run(*flags, "--draft-length", 5, "--out", distilled, "--warmup", 1000)
    first, second = (weights(directory / "last.pt") for directory in (joint, distilled))
    kept = load_model(joint / "checkpoint").state_dict()
    assert all(torch.equal(second[f"model.{name}"], kept[name]) for name in kept)
    for name in (name for name in first if name.startswith("prophet.")):
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-4)

    other = [*flags, "--draft-length", 5, "--leading-states", 3, "--out", tmp_path / "other"]
    assert main([str(x) for x in other]) == 1
    assert "another shape of prophet" in capsys.readouterr().err


def test_each_flag_says_what_it_does() -> None:
    records = (TrainConfig, ModelShape)
    names = {item.name for record in records for item in fields(record)}
    assert names - {"shape", "data", "frozen"} == HELP.keys()


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_uncompiled_one_does(text: Path, tmp_path: Path) -> None:
    flags = ["--data", text, *TINY, "--steps", 4]
    run(*flags, "--out", tmp_path / "eager")
    run(*flags, "--out", tmp_path / "compiled", "--compile")
    eager, compiled = (weights(tmp_path / name / "last.pt") for name in ("eager", "compiled"))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    text: Path, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--data", str(text), *TINY, "--steps", "40", "--save-every", "3"]
    run(*flags, "--out", tmp_path / "whole")
    broken = ["-m", "train", *flags, "--out", str(tmp_path / "broken")]
    process = subprocess.Popen(
        [sys.executable, *broken], cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "broken" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(60)
    assert read_save(tmp_path / "broken" / "last.pt", CPU)["step"] < 40
    run(*flags, "--out", tmp_path / "broken")
    whole, resumed = (weights(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_do_what_one_does(text: Path, tmp_path: Path) -> None:
    flags = ["--data", str(text), *TINY, "--steps", "4", "--optimizer", "adam"]
    run(*flags, "--out", tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # whatever the machine's name resolves to
    launcher += ["--local-addr", "127.0.0.1"]
    command = [*launcher, "-m", "train", *flags, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (weights(tmp_path / name / "last.pt") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    records = [
        json.loads((tmp_path / name / "checkpoint" / "training.json").read_text())
        for name in ("one", "two")
    ]
    assert [record["processes"] for record in records] == [1, 2]
    assert records[0]["bytes_seen"] == records[1]["bytes_seen"]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        *((loss, "autoregressive") for loss in ("cross_entropy", "kl", "tv", "lk", "coupled")),
        ("kl", "parallel"),
    ],
)
def test_a_prophet_is_trained_for_a_frozen_model(
    text: Path, tmp_path: Path, loss: str, kind: str
) -> None:
    run("--data", text, "--out", tmp_path / "joint", *TINY, "--steps", 3)
    frozen = tmp_path / "joint" / "checkpoint"
    shape = TINY.index("--hidden-size")
    run_flags = [*TINY[:shape], "--device", "cpu", "--dtype", "float32", "--draft-length", "4"]
    flags = ["--data", text, *run_flags, "--steps", 4, "--prophet-loss", loss]
    flags += ["--prophet-kind", kind]
    run("prophet", "--checkpoint", frozen, "--out", tmp_path / "alone", *flags)
    result = tmp_path / "alone" / "checkpoint"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (result / name).read_bytes() == (frozen / name).read_bytes()
    before, after = load_prophet(frozen), load_prophet(result)
    assert before is not None
    assert after is not None
    assert after.config.draft_length == 4
    assert after.config.kind == kind
    card = (result / "README.md").read_text()
    assert f"M ({kind}: " in card
    assert f"| {loss} |" in card
    assert after.config.model_hidden_size == load_model(result).config.hidden_size
    rows = list(csv.DictReader((tmp_path / "alone" / "curve.csv").read_text().splitlines()))
    assert "words.bin/acceptance_4" in rows[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accumulate", "0"], "accumulate"),
        (["--optimizer", "sgd"], "optimizer must be one of muon, adamw, adam"),
        (["--prophet-loss", "mse"], "prophet_loss must be one of"),
        (["--prophet-kind", "medusa"], "prophet_kind must be one of autoregressive, parallel"),
        (["--prophet-kind", "parallel", "--prophet-depth", "2"], "prophet_depth must be 1"),
        (["--starts", "1.5"], "starts"),
        (["--split", "line"], "split must be one of"),
        (["--separate", "--eos-byte", "-1"], "separate needs an eos_byte"),
    ],
)
def test_impossible_flags_are_refused_by_name(
    text: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(text), "--out", str(tmp_path), *TINY, *flags]) == 1
    assert message in capsys.readouterr().err
