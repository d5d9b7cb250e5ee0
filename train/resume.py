"""Whether a save is of the run that is to go on: the same flags where they count, the same data.

A flag counts if weights, or which of them are the best, can depend on it; `train.config` knows
which.  Of data it counts what they are, of a frozen model its weights, of neither where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from train.config import TrainConfig
from train.inventory import Entry, from_json, require_same, take_inventory
from train.limits import flag
from train.save import TrainingError, taking

if TYPE_CHECKING:
    from train.trainer import Trainer


def require_same_run(trainer: Trainer, state: Mapping[str, Any]) -> list[Entry] | None:
    """The inventory of the data, which only the leader makes.

    TrainingError with each flag that differs and both values, DataError with files that changed.
    """
    path, config = trainer.save_path, trainer.config
    with taking(path):
        began = TrainConfig.from_json(state["config"])
        before = from_json(state["data"]) if "data" in state else None
    differing = began.differing(config)
    # a save of before there was an inventory knows data by their names alone
    for name in ("frozen",) if before is not None else ("frozen", "data", "validation"):
        first, second = getattr(began, name), getattr(config, name)
        if first != second and (name != "frozen" or not (first and second)):
            differing[name] = first, second
    if differing:
        told = [f"{flag(n)} was {_shown(a)}, is {_shown(b)}" for n, (a, b) in differing.items()]
        raise TrainingError(
            f"{path} was trained with other flags: {'; '.join(told)}; "
            "give those of that run or another --out"
        )
    if config.frozen and not _equal(state["model"], trainer.model.state_dict()):
        raise TrainingError(
            f"--checkpoint: the model of {config.frozen} is not the one that {path} is for; "
            "give that or another --out"
        )
    if not trainer.world.leads:
        return None
    now = take_inventory(trainer.corpus.files, before or ())
    if before is None:
        trainer.notes.append(f"{path} does not tell what its data were: they are taken to be these")
    else:
        require_same(before, now, by_file=config.split == "file")
    return now


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].cpu(), second[name].cpu()) for name in first
    )


def _shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text or "not given"
