"""What a new run begins with, where that is another run, one of its saves, or a checkpoint.

Of a run it takes the last weights with the optimizer's state; of its best save, as of a checkpoint,
the weights alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.checkpoint import CONFIG, PROPHET_CONFIG, load_model, load_prophet
from specdec.model import ByteLlama
from specdec.prophet import Prophet
from train.config import TrainConfig
from train.record import phase, phases_of
from train.save import WHOLE, TrainingError, read_save, taking

if TYPE_CHECKING:
    from train.trainer import Trainer


def start_from(trainer: Trainer, path: Path) -> None:
    """`path` is the directory of a run or checkpoint, or `best.pt` in a run's."""
    if any((path / name).exists() for name in (CONFIG, PROPHET_CONFIG)):
        _start_from_checkpoint(trainer, path)
    elif (path / "last.pt").exists():
        _start_from_run(trainer, path / "last.pt")
    elif path.name in ("best.pt", "last.pt") and path.is_file():
        _start_from_run(trainer, path)
    else:
        raise TrainingError(f"--start-from: {path} is neither a run nor a checkpoint")


def _start_from_run(trainer: Trainer, path: Path) -> None:
    state = _state_of_run(trainer, path)
    with taking(path):
        config = TrainConfig.from_json(state["config"])
    own = trainer.config
    if config.frozen and not own.frozen:
        raise TrainingError(f"--start-from: {path} trained a prophet alone, not a model")
    weights = [*state["model"].values(), *state["prophet"].values()]
    if not all(tensor.isfinite().all() for tensor in weights):
        raise TrainingError(
            f"--start-from: {path} has weights that are not finite; "
            f"{path.with_name('best.pt')} has the best"
        )
    if own.frozen and not config.frozen:
        if config.shape.prophet != trainer.prophet.config:
            raise TrainingError(f"--start-from: {path} has another shape of prophet")
        with taking(path):
            trainer.prophet.load_state_dict(state["prophet"])
    else:
        if config.shape != own.shape:
            raise TrainingError(f"--start-from: {path} has another shape")
        if "optimizers" in state and config.optimizer != own.optimizer:
            raise TrainingError(f"--start-from: {path} has another optimizer")
        if own.frozen:  # it may be another one that this prophet is to go on with
            state["model"] = trainer.model.state_dict()
        with taking(path):
            trainer.take(state)
    with taking(path):
        trainer.earlier = [
            *json.loads(state["earlier"]),
            phase(config, state["step"], state["seconds"], state["dtype"]),
        ]


def _state_of_run(trainer: Trainer, path: Path) -> dict[str, Any]:
    """What a save says; of the best, which holds weights alone, with what the last one tells."""
    last = read_save(path.with_name("last.pt"), trainer.device, WHOLE)
    if path.name == "last.pt":
        return last
    state = {**last, **read_save(path, trainer.device)}
    del state["optimizers"]  # they belong to the last weights
    return state


def _start_from_checkpoint(trainer: Trainer, directory: Path) -> None:
    frozen = bool(trainer.config.frozen)
    model_directory = Path(trainer.config.frozen) if frozen else None
    prophet = None
    if trainer.config.starts:
        prophet = load_prophet(directory, model_directory=model_directory)
    if prophet is not None:
        _require_same(f"{directory} has another shape of prophet", prophet, trainer.prophet)
        trainer.prophet.load_state_dict(prophet.state_dict())
    elif frozen:
        raise TrainingError(f"--start-from: {directory} has no prophet")
    if not frozen:
        model = load_model(directory)
        _require_same(f"{directory} has another shape of model", model, trainer.model)
        trainer.model.load_state_dict(model.state_dict())
    trainer.earlier = phases_of(directory, prophet_alone=frozen)


def _require_same(message: str, there: ByteLlama | Prophet, wanted: ByteLlama | Prophet) -> None:
    """TrainingError with the fields in which the configurations of two networks differ."""
    first, second = _flat(asdict(there.config)), _flat(asdict(wanted.config))
    differing = [
        f"{name} is {first[name]}, not {second[name]}"
        for name in first
        if first[name] != second[name]
    ]
    if differing:
        raise TrainingError(f"--start-from: {message}: {'; '.join(differing)}")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in config.items() if k != "block"}, **config["block"]}
