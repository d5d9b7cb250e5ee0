"""A finished run as a checkpoint directory: weights, training.json and the model card."""

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from specdec.checkpoint import save_checkpoint
from specdec.checkpoint_file import write_atomically
from train.card import Domain, model_card
from train.measurement import measure_acceptance
from train.trainer import Trainer

DRAFT_LENGTH = 5
TEMPERATURES = (0.0, 0.7, 1.0)


def export(trainer: Trainer, directory: Path, about_data: str) -> None:
    """Writes the directory; each file appears whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint(directory, trainer.model, trainer.prophet)
    record = training_record(trainer)
    write_atomically(directory / "training.json", (json.dumps(record, indent=2) + "\n").encode())
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*.safetensors"))
    }
    card = model_card(record, _domains(trainer), sums, about_data)
    write_atomically(directory / "README.md", card.encode())


def training_record(trainer: Trainer) -> dict[str, object]:
    """Every hyperparameter, seed and version, and the curve.  Data files by name, not by path."""
    config = asdict(trainer.config)
    for name in ("data", "validation"):
        config[name] = [Path(path).name for path in config[name]]
    return {
        "config": config,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "prophet_parameters": sum(p.numel() for p in trainer.prophet.parameters()),
        "steps": trainer.step,
        "bytes_seen": sum(
            rows * length
            for rows, length in (trainer.config.window_at(step) for step in range(trainer.step))
        ),
        "seconds": round(trainer.seconds),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "curve": trainer.curve,
    }


def _domains(trainer: Trainer) -> list[Domain]:
    domains = []
    for sample in trainer.corpus.validation:
        figures, samples = [], []
        for temperature in TEMPERATURES:
            acceptance, pairs = measure_acceptance(
                trainer.model,
                trainer.prophet,
                sample,
                temperature=temperature,
                draft_length=DRAFT_LENGTH,
            )
            figures.append(acceptance)
            samples.append((temperature, *pairs[len(pairs) // 2]))
        bits = trainer.curve[-1][sample.name] if trainer.curve else {}
        assert isinstance(bits, dict)
        domains.append(Domain(sample.name, bits, figures, samples))
    return domains
