"""What a run exports: the best weights, at any time, for any context, and as others read it."""

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import CPU, ROOT, TINY, command, run, weights, write_words
from transformers import AutoModelForCausalLM

from specdec.checkpoint import hugging_face_tensors, load_model, load_prophet
from train import export
from train.export import SCORED_BYTES, processor
from train.save import read_save


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.bin")


def assert_holds(checkpoint: Path, save: Path) -> None:
    model, prophet = load_model(checkpoint), load_prophet(checkpoint)
    assert prophet is not None
    saved = read_save(save, CPU)
    for part, network in (("model", model), ("prophet", prophet)):
        for name, value in network.state_dict().items():
            assert torch.equal(value, saved[part][name].bfloat16().float()), name


def test_the_best_validation_is_kept_and_exported(text: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.bin"
    noise.write_bytes(np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8).tobytes())
    out = tmp_path / "run"
    flags = ["--data", text, "--validation", noise, *TINY, "--steps", 6, "--evaluate-every", 2]
    run(*flags, "--out", out)
    bits = [
        row["noise.bin"]["model"] for row in json.loads(read_save(out / "last.pt", CPU)["curve"])
    ]
    steps = [0, 2, 4, 6]
    best = steps[bits.index(min(bits))]
    assert best < 6  # words teach nothing about noise
    assert read_save(out / "best.pt", CPU)["step"] == best
    assert read_save(out / "last.pt", CPU)["step"] == 6
    assert_holds(out / "checkpoint", out / "best.pt")
    name = "model.head.weight"
    assert not torch.equal(weights(out / "best.pt")[name], weights(out / "last.pt")[name])
    assert json.loads((out / "checkpoint" / "training.json").read_text())["exported_step"] == best


def test_a_stopped_run_is_exported_when_asked_and_goes_on(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", text, *TINY, "--steps", 6, "--evaluate-every", 2]
    for out in (tmp_path / "whole", tmp_path / "run"):
        assert command(*flags, "--out", out, "--export") == 2
        assert "--export: " in capsys.readouterr().err
        assert not out.exists()
    run(*flags, "--out", tmp_path / "run", "--max-steps", 3)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    run(*flags, "--out", tmp_path / "run", "--export")
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    checkpoint = tmp_path / "run" / "checkpoint"
    assert_holds(checkpoint, tmp_path / "run" / "best.pt")
    assert json.loads((checkpoint / "training.json").read_text())["steps"] == 3
    run(*flags, "--out", tmp_path / "run")
    run(*flags, "--out", tmp_path / "whole")
    tensors = "checkpoint/model.safetensors"
    whole, gone_on = (tmp_path / name / tensors for name in ("whole", "run"))
    assert whole.read_bytes() == gone_on.read_bytes()


@pytest.mark.parametrize("context", [16, 128, 256])
def test_prompts_of_a_short_context_or_sample_are_short(
    text: Path, tmp_path: Path, context: int
) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(text.read_bytes()[:20])
    flags = ["--data", text, "--validation", short, *TINY, "--context", context, "--steps", 1]
    flags += ["--windows", 16, "--window-shares", 1, "--demonstrate-every", 1]
    run(*flags, "--out", tmp_path / "run")
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    length = min(context // 2, 20)
    # evenly spread prompts that do not overlap
    prompts = 2 if context == 16 else 1
    assert f"prompts ({prompts} of short.bin) of {length} bytes" in card
    assert f" {min(256, context - length)} generated for each" in card
    assert "| short.bin | 20 | " in card
    assert (tmp_path / "run" / "demonstrations.log").read_text().count("of 5\n") == 2


def test_the_card_says_what_was_measured_on_what(text: Path, tmp_path: Path) -> None:
    run("--data", text, *TINY, "--steps", 1, "--out", tmp_path, "--test", text)
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    content = text.read_bytes()
    assert SCORED_BYTES == 400_000  # the tail of enwik8 whole
    assert f"| words.bin | {len(content)} | " in card.replace(",", "")
    assert "(4 of words.bin) of 256 bytes, 256 generated for each" in card
    assert "The first prompt of each file" in card
    # a prompt's last 64 bytes stand before the arrow
    assert card.count(content[192:256].decode() + "⟶") == 3
    assert f"On {processor(CPU)} (cpu, {torch.get_num_threads()} threads, 1 process)" in card
    assert processor(CPU)
    if Path("/proc/cpuinfo").exists() and platform.machine() == "x86_64":
        assert processor(CPU) in Path("/proc/cpuinfo").read_text()


def test_what_the_card_says_is_of_the_weights_that_were_written(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.nn.Module] = []
    measure = export.measure_acceptance

    def acceptance(model: Any, prophet: Any, *arguments: Any, **more: Any) -> Any:
        measured.extend((model, prophet))
        return measure(model, prophet, *arguments, **more)

    monkeypatch.setattr(export, "measure_acceptance", acceptance)
    run("--data", text, *TINY, "--steps", 2, "--test-prompts", 1, "--out", tmp_path)
    checkpoint = tmp_path / "checkpoint"
    written = {type(n): n for n in (load_model(checkpoint), load_prophet(checkpoint)) if n}
    assert len(measured) == 2 * len(export.TEMPERATURES) * len(export.DRAFT_LENGTHS)
    for network in measured:
        for name, value in written[type(network)].state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


def logits_agree(checkpoint: Path, content: bytes) -> None:
    ours = load_model(checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(
        checkpoint, local_files_only=True, dtype=torch.float32
    )
    for name, value in hugging_face_tensors(ours).items():
        assert torch.equal(theirs.state_dict()[name], value), name
    tokens = torch.tensor(list(content))[None]
    with torch.no_grad():
        expected, found = ours.logits(ours(tokens)), theirs(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_transformers_computes_the_logits_of_an_export(text: Path, tmp_path: Path) -> None:
    run("--data", text, *TINY, "--steps", 3, "--out", tmp_path)
    logits_agree(tmp_path / "checkpoint", text.read_bytes()[:300])


DEFAULT = ROOT / "checkpoints" / "default"


def test_transformers_computes_the_logits_of_the_checkpoint_that_ships() -> None:
    logits_agree(DEFAULT, (ROOT / "train" / "trainer.py").read_bytes()[:600])


def test_the_checkpoint_that_ships_is_small_and_its_card_tells_its_sums() -> None:
    files = [path for path in (ROOT / "checkpoints").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 16 << 20 for path in files)
    assert sum(path.stat().st_size for path in DEFAULT.iterdir()) <= 24 << 20
    told = dict(re.findall(r"`(\S+)` sha256 ([0-9a-f]{64})", (DEFAULT / "README.md").read_text()))
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in DEFAULT.glob("*.safetensors")
    }
    assert sums
    assert told == sums
