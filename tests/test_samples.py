"""A model's own text as training data: what is written, resuming, refusals."""

from pathlib import Path

import pytest
import torch
from tiny import CPU, tiny_model

from specdec.build import build_decoder
from specdec.checkpoint import load_model, save_checkpoint
from specdec.decoder import Job, generate
from specdec.sampling import SamplingParams
from train.samples import SLOTS, main


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    save_checkpoint(tmp_path / "model", tiny_model(), None, torch.float32)
    data = tmp_path / "data.bin"
    data.write_bytes(bytes(range(1, 200)) * 20)
    return [
        *("--checkpoint", str(tmp_path / "model"), "--data", str(data)),
        *("--prompt-bytes", "20", "--new-bytes", "30"),
    ]


def test_prompts_are_continued_by_the_model(tmp_path: Path, flags: list[str]) -> None:
    out = tmp_path / "samples.bin"
    assert main([*flags, "--out", str(out), "--bytes", "2000", "--temperature", "0"]) == 0
    content = out.read_bytes()
    assert len(content) == 2 * SLOTS * 50
    model = load_model(tmp_path / "model")
    decoder = build_decoder(model, None, slots=1, device=CPU, dtype=torch.bfloat16)
    greedy = SamplingParams(temperature=0)
    for start in range(0, len(content), 50 * 7):
        prompt, continued = content[start : start + 20], content[start + 20 : start + 50]
        assert prompt in bytes(range(1, 200)) * 2
        assert generate(decoder, [Job(prompt, 30, greedy)])[0].output == continued


def test_a_stopped_run_goes_on_to_the_same_file(tmp_path: Path, flags: list[str]) -> None:
    whole, broken = tmp_path / "whole.bin", tmp_path / "broken.bin"
    assert main([*flags, "--out", str(whole), "--bytes", "4000"]) == 0
    broken.write_bytes(whole.read_bytes()[: SLOTS * 50 + 7])
    assert main([*flags, "--out", str(broken), "--bytes", "4000"]) == 0
    assert broken.read_bytes() == whole.read_bytes()


def test_what_cannot_be_is_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "samples.bin")]
    assert main([*flags, *out, "--new-bytes", "500"]) == 1
    assert "exceed the model's context of 160" in capsys.readouterr().err
    assert main([*flags, *out, "--prompt-bytes", "5000"]) == 1
    assert "fewer than" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        *("--bytes 0", "--bytes -1", "--prompt-bytes 0", "--new-bytes many", "--mix nan"),
        *("--mix 1 2", "--mix 0", "--seed -1", "--data"),
    ],
)
def test_senseless_numbers_are_refused_by_flag(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str], given: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*flags, "--out", str(tmp_path / "samples.bin"), *given.split()])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {given.split()[0]}: ")
    assert said.count("\n") == 1
