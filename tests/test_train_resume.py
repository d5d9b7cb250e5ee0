"""A run that is stopped, killed or denied its disk goes on to what an unbroken one gives."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from patience import PATIENCE_S
from runs import CPU, ROOT, TINY, assert_same_weights, command, run, write_words

import train.trainer
from train.objective import Losses, objective
from train.save import read_save

pytestmark = pytest.mark.usefixtures("short_cards")

FLAGS = [*TINY, "--steps", "40", "--save-every", "3", "--evaluate-every", "4"]
SHORT = [*TINY, "--steps", "6", "--save-every", "2", "--evaluate-every", "2"]

DYING = """
    import os
    import signal
    import sys

    from train.__main__ import main

    name, left = sys.argv[1], int(sys.argv[2])
    synced = os.fsync

    def die(descriptor):
        global left
        left -= name in os.readlink(f"/proc/self/fd/{descriptor}")
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        synced(descriptor)

    os.fsync = die
    main(sys.argv[3:])
"""
"""A run that is killed as it has written the n-th file of a name, before it is put in its place."""

HELD = """
    import os
    import sys

    from train.__main__ import main

    left = 2
    synced = os.fsync

    def hold(descriptor):
        global left
        left -= "last.pt" in os.readlink(f"/proc/self/fd/{descriptor}")
        if not left:
            left = -1
            print("held", flush=True)
            sys.stdin.read()
        synced(descriptor)

    os.fsync = hold
    sys.exit(main(sys.argv[1:]))
"""
"""A run that waits amid its second save, until its standard input is closed."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("data") / "words.bin")


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    out = tmp_path_factory.mktemp("whole")
    run("--data", text, *FLAGS, "--out", out)
    return out


def curve(directory: Path) -> list[dict[str, object]]:
    """Losses and acceptance of each validation, without the seconds that it was made at."""
    rows = json.loads(read_save(directory / "last.pt", CPU)["curve"])
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_resumes(text: Path, broken: Path, whole: Path) -> None:
    run("--data", text, *FLAGS, "--out", broken)
    assert_same_weights(broken / "last.pt", whole / "last.pt")
    assert_same_weights(broken / "best.pt", whole / "best.pt")
    assert curve(broken) == curve(whole)
    assert [row["step"] for row in curve(broken)] == list(range(0, 41, 4))
    tensors = "checkpoint/model.safetensors"
    assert (broken / tensors).read_bytes() == (whole / tensors).read_bytes()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds a file's name in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_losses_of_an_unbroken_one(
    text: Path, tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    arguments = ["-c", textwrap.dedent(HELD), "--data", str(text), *FLAGS, "--out", str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline() not in (b"held\n", b""):
                pass
            assert (tmp_path / "last.pt").exists()
            process.send_signal(number)
            _, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    # a signal that can be heard is an orderly end
    assert process.returncode == (-number if number == signal.SIGKILL else 0), errors
    assert b"Traceback" not in errors
    assert read_save(tmp_path / "last.pt", CPU)["step"] < 40
    assert_resumes(text, tmp_path, whole)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds a file's name in /proc")
@pytest.mark.parametrize(
    ("name", "count", "step"),
    [("last.pt", 1, None), ("last.pt", 4, 9), ("best.pt", 3, 6), ("curve.png", 6, 18)],
)
def test_a_run_killed_amid_a_write_resumes_to_the_losses_of_an_unbroken_one(
    text: Path, tmp_path: Path, whole: Path, name: str, count: int, step: int | None
) -> None:
    script = [sys.executable, "-c", textwrap.dedent(DYING), name, str(count)]
    done = subprocess.run(
        [*script, "--data", str(text), *FLAGS, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    if step is None:
        assert not (tmp_path / "last.pt").exists()
    else:
        assert read_save(tmp_path / "last.pt", CPU)["step"] == step
    assert_resumes(text, tmp_path, whole)


def not_a_number(losses: Losses) -> Losses:
    return replace(losses, total=losses.total * float("nan"))


def steep(losses: Losses) -> Losses:
    """Its value is as it was, its gradient is not a number."""
    return replace(losses, total=losses.total + (losses.total * 0).sqrt())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(not_a_number, "the loss at step 3 is nan"), (steep, "the gradient's norm at step 3 is nan")],
)
def test_a_run_stops_before_what_is_not_a_number_reaches_the_weights(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Losses], Losses],
    message: str,
) -> None:
    flags = ["--data", text, *SHORT, "--accumulate", 2, "--evaluate-every", 100]
    run(*flags, "--out", tmp_path / "whole")
    calls = 0

    def spoiled(*arguments: object) -> Losses:
        nonlocal calls
        losses = objective(*arguments)  # type: ignore[arg-type]
        if not torch.is_grad_enabled():  # a validation
            return losses
        calls += 1
        return spoil(losses) if calls == 8 else losses  # the second batch of the fourth step

    with monkeypatch.context() as patched:
        patched.setattr(train.trainer, "objective", spoiled)
        assert command(*flags, "--out", tmp_path / "broken") == 1
    error = (
        f"error: {message}; the last save is kept; --start-from {tmp_path / 'broken' / 'best.pt'} "
        "goes on with other rates in another --out\n"
    )
    assert capsys.readouterr().err.endswith(error)
    assert read_save(tmp_path / "broken" / "last.pt", CPU)["step"] == 2
    run(*flags, "--out", tmp_path / "broken")
    assert_same_weights(tmp_path / "broken" / "last.pt", tmp_path / "whole" / "last.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
@pytest.mark.parametrize(
    "name",
    [
        *("last.pt", "best.pt", "demonstrations.log", "curve.csv", "curve.png"),
        *("checkpoint/model.safetensors", "checkpoint/training.json", "checkpoint/README.md"),
    ],
)
def test_a_full_disk_stops_the_run_and_keeps_the_last_save(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    flags = ["--data", text, *SHORT, "--demonstrate-every", 3]
    run(*flags, "--out", tmp_path / "whole")
    broken = tmp_path / "broken"
    run(*flags, "--out", broken, "--max-steps", 2)
    saved = read_save(broken / "last.pt", CPU)["step"]
    path = broken / name
    opened, synced = Path.open, os.fsync

    def full(descriptor: int) -> None:
        written = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if written.removeprefix(".").startswith(f"{path.name}."):
            raise OSError(28, "No space left on device")
        synced(descriptor)

    def full_log(file: Path, *arguments: object, **more: object) -> object:
        return opened(Path("/dev/full") if file == path else file, *arguments, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        patched.setattr(Path, "open", full_log)
        assert command(*flags, "--out", broken) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: ")
    assert "No space left on device" in error
    assert read_save(broken / "last.pt", CPU)["step"] >= saved
    assert not [*broken.rglob("*.partial"), *broken.rglob("*.tmp")]
    run(*flags, "--out", broken)
    assert_same_weights(broken / "last.pt", tmp_path / "whole" / "last.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_below_the_output_stops_the_run_too(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data", text, *SHORT, "--out", tmp_path, "--max-steps", 3)
    before = (tmp_path / "last.pt").read_bytes()
    with monkeypatch.context() as patched, Path("/dev/full").open("wb", buffering=0) as full:
        patched.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        assert command("--data", text, *SHORT, "--out", tmp_path) == 1
        sys.stdout.detach()  # type: ignore[union-attr]
    assert capsys.readouterr().err.endswith("error: [Errno 28] No space left on device\n")
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_directory_that_cannot_be_made_is_named(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert command("--data", text, *TINY, "--out", tmp_path / "file" / "run") == 1
    assert f"error: {tmp_path / 'file' / 'run'}: Not a directory" in capsys.readouterr().err
