"""A finished run as a checkpoint directory: weights, training.json, curve and the model card."""

import hashlib
import json
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from specdec.checkpoint import save_checkpoint, save_prophet
from specdec.checkpoint_file import write_atomically
from train.card import Domain, model_card
from train.curve import write_curve
from train.measurement import measure_acceptance
from train.trainer import Trainer

DRAFT_LENGTH = 5
TEMPERATURES = (0.0, 0.7, 1.0)
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def export(trainer: Trainer, directory: Path, about_data: str) -> None:
    """Writes the best weights so far; each file appears whole or not at all.

    With a frozen model its files are copied as they are, and the prophet is put beside them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    step = trainer.load_best()
    frozen = trainer.config.frozen
    prophet = trainer.prophet if trainer.config.starts else None
    if frozen:
        for path in sorted(Path(frozen).iterdir()):
            weights = path.name.startswith("model") and ".safetensors" in path.name
            if weights or path.name in MODEL_FILES:
                shutil.copyfile(path, directory / path.name)
        save_prophet(directory, trainer.prophet)
    else:
        save_checkpoint(directory, trainer.model, prophet)
    record = training_record(trainer, step)
    write_atomically(directory / "training.json", (json.dumps(record, indent=2) + "\n").encode())
    if trainer.curve:
        write_curve(directory, trainer.curve)
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*.safetensors"))
    }
    card = model_card(record, _domains(trainer, step), sums, about_data)
    write_atomically(directory / "README.md", card.encode())


def training_record(trainer: Trainer, step: int) -> dict[str, Any]:
    """Every hyperparameter, seed and version, and the curve.  Data files by name, not by path."""
    config = asdict(trainer.config)
    for name in ("data", "validation"):
        config[name] = [Path(path).name for path in config[name]]
    config["frozen"] = Path(config["frozen"]).name
    windows = (trainer.config.window_at(step) for step in range(trainer.step))
    return {
        "config": config,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "prophet_parameters": sum(p.numel() for p in trainer.prophet.parameters()),
        "steps": trainer.step,
        "exported_step": step,
        "bytes_seen": sum(rows * length for rows, length in windows) * trainer.config.accumulate,
        "seconds": round(trainer.seconds),
        "device": str(trainer.device),
        "processes": trainer.world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "curve": trainer.curve,
    }


def _domains(trainer: Trainer, step: int) -> list[Domain]:
    rows = {row["step"]: row for row in trainer.curve}
    domains = []
    for sample in trainer.corpus.validation:
        figures, samples = [], []
        for temperature in TEMPERATURES if trainer.config.starts else ():
            acceptance, pairs = measure_acceptance(
                trainer.model,
                trainer.prophet,
                sample,
                temperature=temperature,
                draft_length=DRAFT_LENGTH,
            )
            figures.append(acceptance)
            samples.append((temperature, *pairs[len(pairs) // 2]))
        bits = rows.get(step, {}).get(sample.name, {})
        domains.append(Domain(sample.name, bits, figures, samples))
    return domains
