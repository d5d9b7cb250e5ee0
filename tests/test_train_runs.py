"""Whole runs by the command: presets, a frozen model, several processes, what is shown."""

import ast
import csv
import gzip
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from runs import CPU, FROZEN, ROOT, TINY, assert_same_weights, command, run, weights, write_words
from transformers import LlamaConfig, LlamaForCausalLM

import train.config
from specdec.checkpoint import load_model, load_prophet
from train import demonstration
from train.__main__ import HELP, main, parse
from train.config import ModelShape, TrainConfig
from train.save import read_save

pytestmark = pytest.mark.usefixtures("short_cards")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.bin")


def test_the_seed_preset_is_the_reference_recipe() -> None:
    """Every figure, so that none can follow a change of the default recipe."""
    config, options = parse(["--preset", "seed", "--data", "enwik8.gz"])
    assert options.out == Path("runs/seed")
    assert asdict(config) == {
        "data": (str(Path.cwd() / "enwik8.gz"),),
        "mix": (),
        "validation": (),
        "test": (),
        "test_prompts": 64,
        "validation_fraction": 5 / 95,
        "split": "fraction",
        "separate": False,
        "data_limit": 95_000_000,
        "frozen": "",
        "start_from": "",
        "steps": 100_000,
        "batch": 4,
        "accumulate": 4,
        "windows": (512,),
        "window_shares": (1.0,),
        "starts": 1.0,
        "detach": False,
        "prophet_weight": 1.0,
        "prophet_loss": "cross_entropy",
        "prophet_reach": False,
        "prophet_curriculum": 0.0,
        "optimizer": "adam",
        "muon_rate": 0.02,  # Adam asks for neither
        "muon_momentum": 0.95,
        "adam_rate": 1e-4,
        "weight_decay": 0.0,
        "warmup": 0,
        "decay_fraction": 0.0,
        "clip": 0.5,
        "seed": 0,
        "dtype": "auto",
        "compile": False,
        "evaluate_every": 100,
        "save_every": 50,
        "demonstrate_every": 100,
        "tensorboard": False,
        "validation_bytes": 65536,
        "shape": {
            "hidden_size": 512,
            "depth": 10,
            "heads": 8,
            "kv_heads": 8,
            "intermediate_size": 1408,
            "context": 512,
            "rope_theta": 10000.0,
            "prophet_kind": "autoregressive",
            "prophet_depth": 2,
            "leading_states": 2,
            "draft_length": 5,
            "eos_byte": -1,
        },
    }
    assert config.shape.block.head_dim == 64
    assert {config.rate_at(step) for step in (0, 1, 50_000, 99_999)} == {1.0}
    assert round(config.data_limit * (1 - config.validation_fraction)) == 90_000_000
    assert config.window_at(99_999) == (4, 512)
    lengths = (demonstration.PROMPT_BYTES, demonstration.WHOLE_BYTES, demonstration.DRAFT_LENGTH)
    assert lengths == (128, 512, 5)


def test_no_field_of_the_seed_preset_is_left_to_the_defaults() -> None:
    source = ast.parse(inspect.getsource(train.config))
    (call,) = (
        node.value
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SEED"
    )
    assert isinstance(call, ast.Call)
    stated = {word.arg: word.value for word in call.keywords}
    assert stated.keys() == {item.name for item in fields(TrainConfig)}
    assert isinstance(stated["shape"], ast.Call)
    names = {word.arg for word in stated["shape"].keywords}
    assert names == {item.name for item in fields(ModelShape)}


def test_the_seed_preset_shows_what_the_reference_does(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as the README has it, with sizes cut and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("enwik8.gz").write_bytes(gzip.compress(text.read_bytes()))
    sizes = ["--hidden-size", 64, "--depth", 2, "--intermediate-size", 64, "--batch", 1]
    sizes += ["--validation-bytes", 1024]
    run("--preset", "seed", "--data", "enwik8.gz", "--max-steps", 2, *sizes)
    shown = capsys.readouterr()
    assert "| 2/100000 [" in shown.err
    assert re.search(r"model \d\.\d+ prophet \d\.\d+ bits/byte, [\d,]+ bytes/s", shown.err)
    (validated,) = (line for line in shown.out.splitlines() if line.startswith("{"))
    figures = json.loads(validated)["enwik8.gz"]
    assert figures["model"] > 7
    assert figures["prophet"] > 7
    assert len(figures["acceptance"]) == 5
    parts = re.search(
        r"step 0, prompt from enwik8\.gz:\n(.*)\n─+\n"
        r"base, \d+ ms:\n(.*)\n─+\n"
        r"speculative, \d+ ms, (?:the same bytes|other bytes from a near-tie on:)\n"
        r"(?:.*\n)?mean accepted \d\.\d\d of 5\n",
        shown.out,
        re.DOTALL,
    )
    assert parts
    prompt, continuation = parts.groups()
    assert prompt.encode() in text.read_bytes()
    assert len(prompt) == 128
    assert len(continuation) > 128
    assert parts.group() in Path("runs/seed/demonstrations.log").read_text()
    assert "stopped at step 2; the same command goes on" in shown.out


def test_the_preset_can_be_changed_by_flags() -> None:
    config, _ = parse(
        ["--preset", "seed", "--data", "x", "--out", "y", "--starts", "0", "--detach"]
    )
    assert config.starts == 0
    assert config.detach


def test_a_model_alone_shows_nothing_of_a_prophet(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--steps", 2, "--starts", 0, "--demonstrate-every", 2]
    run("--data", text, "--out", tmp_path, *TINY, *flags)
    shown = capsys.readouterr()
    assert re.search(r"model \d\.\d+ bits/byte", shown.err)
    for part in (shown.out, shown.err, (tmp_path / "demonstrations.log").read_text()):
        assert not re.search("prophet|acceptance|speculative|accepted", part)
    for directory in (tmp_path, tmp_path / "checkpoint"):
        rows = list(csv.DictReader((directory / "curve.csv").read_text().splitlines()))
        assert rows[0].keys() == {"step", "seconds", "words.bin/model"}
        assert (directory / "curve.png").read_bytes().startswith(b"\x89PNG")
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


def test_event_files_hold_the_curve(text: Path, tmp_path: Path) -> None:
    flags = ["--data", text, *TINY, "--steps", 2, "--evaluate-every", 1, "--tensorboard"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own, on import
        run(*flags, "--out", tmp_path)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    for name in rows[0].keys() - {"step"}:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == {int(row["step"]): pytest.approx(float(row[name])) for row in rows}


def test_files_of_the_shell_are_one_source_unless_they_are_weighed(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    words, size = text.read_bytes(), 200  # whose end would be no window of validation
    names = [tmp_path / "texts" / f"{index:02}.txt" for index in range(40)]
    for index, name in enumerate(names):
        name.write_bytes(words[index * size : (index + 1) * size])
    flags = [*TINY, "--steps", 1, "--validation-fraction", 0.25]
    for more in ([], ["--split", "file", "--separate"]):
        for out, data in (("files", names), ("directory", [tmp_path / "texts"])):
            run("--data", *data, *flags, *more, "--out", tmp_path / out / "-".join(more))
        runs = [tmp_path / out / "-".join(more) for out in ("files", "directory")]
        assert_same_weights(runs[0] / "last.pt", runs[1] / "last.pt")
    packed = b"".join(path.read_bytes() for path in (runs[0] / "data").iterdir())
    assert packed.count(b"\0") == 40
    rows = list(csv.DictReader((runs[0] / "curve.csv").read_text().splitlines()))
    assert "00.txt and 39 more/model" in rows[0]

    weighed = ["--data", *names[:2], "--mix", 1, 2, "--out", tmp_path / "mixed"]
    assert command(*weighed, *flags) == 2
    assert "00.txt: 50 bytes for validation are fewer than one window" in capsys.readouterr().err
    run(*weighed, *flags, "--validation", text)


def test_max_steps_pauses_and_the_same_command_goes_on(text: Path, tmp_path: Path) -> None:
    flags = ["--data", text, *TINY, "--steps", 6, "--accumulate", 2]
    run(*flags, "--out", tmp_path / "whole")
    for _ in range(3):
        assert not (tmp_path / "paused" / "checkpoint").exists()
        run(*flags, "--out", tmp_path / "paused", "--max-steps", 2)
    assert_same_weights(*(tmp_path / name / "last.pt" for name in ("whole", "paused")))
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
    assert main([str(x) for x in (*flags, *other, "--steps", 2)]) == 2
    assert "another shape" in capsys.readouterr().err


def test_a_prophet_goes_on_for_another_model(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        run("--data", text, *TINY, "--out", tmp_path / name, "--steps", 1, "--seed", seed)
    flags = ["--data", text, *FROZEN, "--draft-length", "8", "--steps", 1]
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
    assert main([str(x) for x in joint]) == 2
    assert "trained a prophet alone" in capsys.readouterr().err


def test_training_goes_on_from_a_checkpoint(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From what is shipped, without the run that made it: a model, or a prophet for a kept one."""
    run("--data", text, *TINY, "--out", tmp_path / "first", "--steps", 2)
    shipped = tmp_path / "first" / "checkpoint"
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("prophet_config.json", "prophet.safetensors"):
        shutil.copy(shipped / name, alone)
    (alone / "training.json").write_text("[]")  # somebody else's
    prophet = load_prophet(shipped)
    assert prophet is not None
    began = {f"prophet.{name}": tensor for name, tensor in prophet.state_dict().items()}
    whole = began | {f"model.{k}": v for k, v in load_model(shipped).state_dict().items()}
    still = ["--data", text, "--steps", 1, "--warmup", 1000]
    frozen = [*still, *FROZEN, "--checkpoint", shipped, "--start-from"]
    for out, flags, expected, phases in (
        ("both", [*still, *TINY, "--start-from", shipped], whole, 1),
        ("prophet", ["prophet", *frozen, shipped], began, 1),
        ("beside", ["prophet", *frozen, alone], began, 0),
    ):
        run(*flags, "--out", tmp_path / out)
        ended = weights(tmp_path / out / "last.pt")
        for name, tensor in expected.items():
            torch.testing.assert_close(ended[name], tensor, rtol=0, atol=1e-4)
        record = json.loads((tmp_path / out / "checkpoint" / "training.json").read_text())
        assert [phase["steps"] for phase in record["earlier"]] == [2] * phases
    # the record of a checkpoint that was trained in two turns, the model's first
    run(
        *still, *TINY, "--start-from", tmp_path / "prophet" / "checkpoint", "--out", tmp_path / "on"
    )
    card = (tmp_path / "on" / "checkpoint" / "README.md").read_text()
    lines = [line.split("|")[1].strip() for line in card.splitlines() if "| float32 |" in line]
    assert lines == ["model and prophet", "prophet, model frozen", "model and prophet"]

    (shipped / "prophet_config.json").unlink()
    for flags, message in (
        (["prophet", *frozen, shipped], f"--start-from: {shipped} has no prophet"),
        (["prophet", *frozen, alone, "--leading-states", 3], "leading_states is 2, not 3"),
        (
            [*still, *TINY, "--depth", 3, "--start-from", shipped],
            f"--start-from: {shipped} has another shape of model: num_hidden_layers is 2, not 3",
        ),
        ([*still, *TINY, "--start-from", tmp_path], f"--start-from: {tmp_path} is neither a run"),
    ):
        assert command(*flags, "--out", tmp_path / "wrong") == 2
        assert message in capsys.readouterr().err


def test_joint_training_then_distillation(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prophet that learnt beside a model goes on alone, the model kept as exported."""
    joint, distilled = tmp_path / "joint", tmp_path / "distilled"
    run("--data", text, *TINY, "--out", joint, "--steps", 3)
    flags = ["--data", text, *FROZEN, "--steps", 1]
    flags = ["prophet", "--checkpoint", joint / "checkpoint", "--start-from", joint, *flags]
    run(*flags, "--out", distilled, "--warmup", 1000)
    first, second = (weights(directory / "last.pt") for directory in (joint, distilled))
    kept = load_model(joint / "checkpoint").state_dict()
    assert all(torch.equal(second[f"model.{name}"], kept[name]) for name in kept)
    for name in (name for name in first if name.startswith("prophet.")):
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-4)
    card = (distilled / "checkpoint" / "README.md").read_text()
    assert card.count("| model and prophet |") == card.count("| prophet, model frozen |") == 1

    other = [*flags, "--leading-states", 3, "--out", tmp_path / "other"]
    assert main([str(x) for x in other]) == 2
    assert "another shape of prophet" in capsys.readouterr().err


def test_a_prophet_may_use_the_whole_context_of_its_model(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Longer or shorter than the default shape's, which is not that of a frozen model."""
    run("--data", text, "--out", tmp_path / "long", *TINY, "--context", 1300, "--steps", 1)
    frozen = ["prophet", "--checkpoint", tmp_path / "long" / "checkpoint", "--data", text]
    frozen += [*FROZEN, "--steps", 1, "--batch", 1, "--window-shares", 1]
    run(*frozen, "--windows", 1300, "--out", tmp_path / "alone")
    assert load_prophet(tmp_path / "alone" / "checkpoint") is not None
    assert command(*frozen, "--windows", 1301, "--out", tmp_path / "beyond") == 2
    assert "--windows: 1301 exceeds the model's context of 1300" in capsys.readouterr().err


def test_a_prophet_is_trained_for_what_transformers_writes(text: Path, tmp_path: Path) -> None:
    """Tied embeddings, a context below the default shape's, no tokenizer beside it."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=200,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path / "theirs")
    flags = ["prophet", "--checkpoint", tmp_path / "theirs", "--data", text, *FROZEN]
    run(*flags, "--steps", 2, "--out", tmp_path / "run")
    result = tmp_path / "run" / "checkpoint"
    tensors = "model.safetensors"
    assert (result / tensors).read_bytes() == (tmp_path / "theirs" / tensors).read_bytes()
    prophet = load_prophet(result)
    assert prophet is not None
    assert prophet.config.model_hidden_size == 32
    card = (result / "README.md").read_text()
    assert "of 100 bytes, 100 generated" in card
    tokens = torch.arange(64)[None]
    again = LlamaForCausalLM.from_pretrained(result, local_files_only=True)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits)


def test_each_flag_says_what_it_does() -> None:
    records = (TrainConfig, ModelShape)
    names = {item.name for record in records for item in fields(record)}
    assert names - {"shape", "data", "frozen"} == HELP.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_a_compiled_run_learns_what_an_uncompiled_one_does(text: Path, tmp_path: Path) -> None:
    flags = ["--data", text, *TINY, "--steps", 4]
    run(*flags, "--out", tmp_path / "eager")
    run(*flags, "--out", tmp_path / "compiled", "--compile")
    eager, compiled = (weights(tmp_path / name / "last.pt") for name in ("eager", "compiled"))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-3)


def test_two_processes_do_what_one_does(text: Path, tmp_path: Path) -> None:
    packed = tmp_path / "words.gz"  # which one of them unpacks
    packed.write_bytes(gzip.compress(text.read_bytes()))
    flags = ["--data", str(packed), *TINY, "--steps", "4", "--optimizer", "adam"]
    run(*flags, "--out", tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # whatever the machine's name resolves to
    launcher += ["--local-addr", "127.0.0.1"]
    command = [*launcher, "-m", "train", *flags, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
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
    flags = ["--data", text, *FROZEN, "--draft-length", "4", "--steps", 4, "--prophet-loss", loss]
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

    # another prophet for the same model, which tells how the model was trained
    again = [*flags[:-4], "--prophet-loss", loss, "--prophet-kind", kind]
    run("prophet", "--checkpoint", result, "--out", tmp_path / "again", *again)
    record = json.loads((tmp_path / "again" / "checkpoint" / "training.json").read_text())
    assert record["model"]["config"]["frozen"] == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accumulate", "0"], "--accumulate: must be at least 1"),
        (["--optimizer", "sgd"], "--optimizer: must be one of muon, adamw, adam"),
        (["--prophet-loss", "mse"], "--prophet-loss: must be one of"),
        (
            ["--prophet-kind", "medusa"],
            "--prophet-kind: ProphetConfig.kind 'medusa' is not known: autoregressive and parallel",
        ),
        (
            ["--prophet-kind", "parallel", "--prophet-depth", "2"],
            "--prophet-depth, --prophet-kind: ",
        ),
        (["--starts", "1.5"], "--starts: must be at least 0 and at most 1, not 1.5"),
        (["--split", "line"], "--split: must be one of"),
        (["--separate", "--eos-byte", "-1"], "--separate: needs an --eos-byte"),
    ],
)
def test_impossible_flags_are_refused_by_name(
    text: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(text), "--out", str(tmp_path), *TINY, *flags]) == 2
    assert message in capsys.readouterr().err
