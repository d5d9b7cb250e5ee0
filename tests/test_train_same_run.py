"""What a run may be resumed with: other flags where no weight depends on them, the same data."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import CPU, FROZEN, TINY, assert_same_weights, refusal, run, weights, write_words

from specdec.checkpoint import load_model, save_checkpoint
from train.config import TrainConfig
from train.save import read_save

pytestmark = pytest.mark.usefixtures("short_cards")

SHORT = [*TINY, "--steps", 4]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.bin")


@pytest.fixture(scope="module")
def paused(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paused")
    run("--data", text, *SHORT, "--max-steps", 2, "--out", out)
    return out


@pytest.fixture
def copy(paused: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(paused, tmp_path / "copy"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of words, with one below it."""
    root = tmp_path / "tree"
    (root / "below").mkdir(parents=True)
    write_words(root / "b.txt")
    (root / "below" / "c.txt").write_bytes(b"not x\n" * 500)
    return root


def test_flags_that_change_no_weight_may_be_others(
    text: Path, tmp_path: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved" / "words.bin"
    moved.parent.mkdir()
    shutil.copyfile(text, moved)  # with another time
    other = ["--save-every", 1, "--evaluate-every", 3, "--test", text, "--test-prompts", 2]
    other += ["--demonstrate-every", 3, "--about-data", "Words."]
    run("--data", moved, *SHORT, *other, "--out", copy)
    assert "resumed" in capsys.readouterr().out
    run("--data", text, *SHORT, "--out", tmp_path / "whole")
    assert_same_weights(copy / "last.pt", tmp_path / "whole" / "last.pt")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--seed 1", "--seed was 0, is 1;"),
        ("--batch 8 --clip 0", "--batch was 4, is 8; --clip was 1.0, is 0.0;"),
        ("--windows 64 64", "--windows was 64 128, is 64 64;"),
        ("--no-detach", "--detach was True, is False;"),
        ("--depth 3", "--depth was 2, is 3;"),
        ("--dtype bfloat16", "--dtype was float32, is bfloat16;"),
        ("--validation-bytes 1024", "--validation-bytes was 512, is 1024;"),
        ("--mix 1", "--mix was not given, is 1.0;"),
        ("--start-from /there", "--start-from was not given, is /there;"),
        ("--steps 5", "--steps was 4, is 5;"),
    ],
)
def test_a_flag_that_differs_is_named_with_both_values(
    text: Path, copy: Path, capsys: pytest.CaptureFixture[str], flags: str, told: str
) -> None:
    said = refusal(capsys, "--data", text, *SHORT, "--out", copy, *flags.split())
    begin = f"{copy / 'last.pt'} was trained with other flags: {told}"
    assert said == f"{begin} give those of that run or another --out"


def test_compiled_steps_are_others() -> None:
    eager = TrainConfig(data=("words",))
    compiled = replace(eager, compile=True, data=("elsewhere",), save_every=7)
    assert eager.differing(compiled) == {"compile": (False, True)}


def test_data_that_changed_are_named(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", tree, *SHORT, "--out", tmp_path / "run"]
    run(*given, "--max-steps", 1)
    first, second, new = tree / "b.txt", tree / "below" / "c.txt", tree / "a.txt"
    content, size = second.read_bytes(), second.stat().st_size
    put_back = "; put back the data that the run began with, or give another --out"

    second.write_bytes(b"z" * size)
    said = refusal(capsys, *given)
    assert said == f"--data: changed since the run began: {second}{put_back}"
    assert refusal(capsys, *given, "--export") == said
    second.unlink()
    said = refusal(capsys, *given)
    assert said == f"--data: missing since the run began: {second}{put_back}"
    second.write_bytes(content)
    new.write_bytes(b"new")
    said = refusal(capsys, *given)
    assert said == f"--data: new since the run began: {new}{put_back}"
    new.unlink()
    said = refusal(capsys, "--data", second, first, *given[2:])
    assert said == f"--data: the files come in another order than when the run began{put_back}"
    said = refusal(capsys, *given, "--validation", first)
    assert said == f"--validation: new since the run began: {first}{put_back}"

    # the same bytes, written again; then with all of it elsewhere, then with a file changed there
    run(*given, "--max-steps", 1)
    moved = tree.rename(tmp_path / "elsewhere")
    run("--data", moved, *given[2:], "--max-steps", 1)
    (moved / "below" / "c.txt").write_bytes(b"z" * size)
    said = refusal(capsys, "--data", moved, *given[2:])
    assert "--data: changed since the run began: " in said
    assert "c.txt" in said
    assert "b.txt" not in said


def test_a_file_whose_size_and_time_are_as_they_were_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = write_words(tmp_path / "words.bin")
    given = ["--data", words, *SHORT, "--max-steps", 1, "--out", tmp_path / "run"]
    run(*given)
    digested: list[Path] = []
    monkeypatch.setattr("train.inventory._digest", lambda path: digested.append(path) or "other")
    run(*given)
    assert not digested
    os.utime(words, (1, 1))
    with pytest.raises(AssertionError):
        run(*given)
    assert digested == [words]


def test_a_save_that_does_not_tell_what_its_data_were_is_resumed(
    text: Path, tmp_path: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a version that kept no inventory; from then on it is kept."""
    state = read_save(copy / "last.pt", CPU)
    for name in ("data", "format"):
        del state[name]
    torch.save(state, copy / "last.pt")
    mine = tmp_path / "words.bin"
    shutil.copyfile(text, mine)
    said = refusal(capsys, "--data", mine, *SHORT, "--out", copy)
    assert f"--data was {text}, is {mine};" in said
    run("--data", text, *SHORT, "--max-steps", 1, "--out", copy)
    assert "last.pt does not tell what its data were" in capsys.readouterr().out
    run("--data", mine, *SHORT, "--out", copy)
    assert "does not tell" not in capsys.readouterr().out
    run("--data", text, *SHORT, "--out", tmp_path / "whole")
    assert_same_weights(copy / "last.pt", tmp_path / "whole" / "last.pt")


def test_a_frozen_model_is_the_same_by_its_weights(
    text: Path, tmp_path: Path, paused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data", text, *SHORT, "--out", paused, "--export")
    here = Path(shutil.copytree(paused / "checkpoint", tmp_path / "here"))
    given = ["prophet", "--data", text, *FROZEN, "--steps", 3, "--max-steps", 1]
    given += ["--out", tmp_path / "run", "--checkpoint"]
    run(*given, here)
    there = here.rename(tmp_path / "there")
    run(*given, there)
    model = load_model(there)
    model.head.weight.data[0, 0] += 1
    save_checkpoint(there, model, None)
    said = refusal(capsys, *given, there)
    assert said.startswith(f"--checkpoint: the model of {there} is not the one that ")
    kept = weights(tmp_path / "run" / "last.pt")["model.head.weight"]
    assert not torch.equal(kept, load_model(there).head.weight)
    joint = ["--data", text, *SHORT, "--out", tmp_path / "run"]
    assert f"--checkpoint was {here}, is not given" in refusal(capsys, *joint).replace(
        str(there), str(here)
    )
