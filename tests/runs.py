"""Small runs by the command, for the tests of the trainer."""

import random
import re
from pathlib import Path

import pytest
import torch

from train.__main__ import main
from train.save import read_save

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")

LENGTHS = ["--batch", "4", "--windows", "64", "128", "--window-shares", "0.85", "0.15"]
SCORES = ["--validation-bytes", "512", "--test-prompts", "4"]
SHAPE = [
    *("--hidden-size", "32", "--depth", "2", "--heads", "2", "--kv-heads", "1"),
    *("--intermediate-size", "48", "--context", "512"),
]
MACHINE = ["--device", "cpu", "--dtype", "float32"]
DRAFT = ["--draft-length", "5"]

TINY = [*LENGTHS, *SCORES, *SHAPE, *DRAFT, *MACHINE]
FROZEN = [*LENGTHS, *SCORES, *DRAFT, *MACHINE]
"""Flags of a prophet for a model that is kept: its shape is not asked for."""


def write_words(path: Path) -> Path:
    """40 KB that are quickly learnt."""
    words = ["if ", "not ", "done: ", "return ", "x\n", "y\n", "for "]
    draw = random.Random(0)
    path.write_bytes("".join(draw.choice(words) for _ in range(8000)).encode())
    return path


def command(*arguments: object) -> int:
    return main([str(part) for part in arguments])


def run(*arguments: object) -> None:
    assert command(*arguments) == 0


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Of a save."""
    state = read_save(path, CPU)
    return {f"{part}.{k}": v for part in ("model", "prophet") for k, v in state[part].items()}


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says that is refused before anything is trained: one line, status 2."""
    capsys.readouterr()
    try:
        status: object = command(*arguments)
    except SystemExit as left:  # argparse's own
        status = left.code
    said = capsys.readouterr()
    assert status == 2, said.out
    assert re.fullmatch(r"error: [^\n]+\n", said.err), said.err
    return said.err.removeprefix("error: ").rstrip("\n")
