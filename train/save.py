"""Saves of a run: written whole to a temporary name, synced, renamed.

What is saved and when is the trainer's; that a save is intact or absent is promised here.  Loaded
as plain tensors and numbers only (`weights_only`): a save never runs code.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
"""Of a save; one of a later version may have a later number."""

WEIGHTS = frozenset(("step", "model", "prophet"))
"""What any save holds."""

WHOLE = WEIGHTS | {"config", "seconds", "dtype", "curve", "earlier", "optimizers"}
"""What a run goes on from."""


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


def read_save(path: Path, device: torch.device, holds: frozenset[str] = WEIGHTS) -> dict[str, Any]:
    """TrainingError where the file is damaged, no save, or one of a later version."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(f"{path}: is not a whole save of a run: {reason}") from None
    missing = sorted(holds - state.keys()) if isinstance(state, dict) else ["everything"]
    if missing:
        raise TrainingError(f"{path}: is not a save of a run: {', '.join(missing)} missing")
    if state.get("format", FORMAT) != FORMAT:
        raise TrainingError(
            f"{path}: is a save of format {state['format']}, of another version; {FORMAT} is read"
        )
    return state


@contextmanager
def taking(path: Path) -> Iterator[None]:
    """Names the save that does not hold what its configuration says."""
    try:
        yield
    except TrainingError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrainingError(f"{path}: cannot be taken as a save of a run: {reason}") from None
