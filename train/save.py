"""Saves of a run: written whole to a temporary name, synced, renamed.

What is saved and when is the trainer's; that a save is intact or absent is promised here.  Loaded
as plain tensors and numbers only (`weights_only`): a save never runs code.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch


class TrainingError(RuntimeError):
    """Training cannot go on; the last save is intact."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file of a run that cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainingError(f"{path}: {reason}; the last save is kept") from error
    except RuntimeError as error:
        # torch's own writer turns a full disk into this
        raise TrainingError(f"{path}: {error}; the last save is kept") from error


def write_save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_save(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: is not a save of a run: {error}") from None
    return state
