"""A finished run as a checkpoint directory: weights, training.json, curve and the model card."""

import hashlib
import json
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from specdec.build import build_decoder
from specdec.checkpoint import load_model, load_prophet, save_checkpoint, save_prophet
from specdec.checkpoint_file import write_atomically
from specdec.config import ModelConfig
from train.card import Domain, model_card
from train.curve import write_curve
from train.measurement import NEW_BYTES, measure_acceptance, prompt_bytes, spread_prompts
from train.record import phase, record_of_model
from train.save import writing
from train.score import bits_per_byte
from train.trainer import Trainer

DRAFT_LENGTHS = (3, 5, 8)
TEMPERATURES = (0.0, 0.7, 1.0)
SCORED_BYTES, SCORED_AT_ONCE = 400_000, 8
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def export(trainer: Trainer, directory: Path, about_data: str) -> None:
    """Writes the best weights so far; each file appears whole or not at all.

    With a frozen model its files are copied as they are, and the prophet is put beside them.
    TrainingError or CheckpointError name the file that cannot be written.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    step = trainer.load_best()
    frozen = trainer.config.frozen
    record = training_record(trainer, step)
    prophet = trainer.prophet if trainer.config.starts else None
    if frozen:
        for path in sorted(Path(frozen).iterdir()):
            weights = path.name.startswith("model") and ".safetensors" in path.name
            if weights or path.name in MODEL_FILES:
                _copy(path, directory / path.name)
        save_prophet(directory, trainer.prophet)
    else:
        save_checkpoint(directory, trainer.model, prophet)
    write_atomically(directory / "training.json", (json.dumps(record, indent=2) + "\n").encode())
    if trainer.curve:
        write_curve(directory, trainer.curve)
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*.safetensors"))
    }
    card = model_card(record, _domains(trainer, directory), sums, about_data)
    write_atomically(directory / "README.md", card.encode())


def _copy(path: Path, target: Path) -> None:
    temporary = target.with_name(target.name + ".partial")
    try:
        with writing(target):
            shutil.copyfile(path, temporary)
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def training_record(trainer: Trainer, step: int) -> dict[str, Any]:
    """Every hyperparameter, seed and version, the curve, and how what it began with was made."""
    return {
        **phase(trainer.config, trainer.step, trainer.seconds, str(trainer.dtype)),
        "architecture": _architecture(trainer.model.config),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "prophet_parameters": sum(p.numel() for p in trainer.prophet.parameters()),
        "exported_step": step,
        "device": str(trainer.device),
        "processor": processor(trainer.device),
        "processes": trainer.world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "curve": trainer.curve,
        "model": record_of_model(trainer.config.frozen),
        "earlier": trainer.earlier,
    }


def processor(device: torch.device) -> str:
    """The name of what computes, as far as the machine tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _architecture(config: ModelConfig) -> dict[str, int]:
    return {
        "hidden_size": config.block.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.block.num_attention_heads,
        "kv_heads": config.block.num_key_value_heads,
        "context": config.max_position_embeddings,
    }


def _domains(trainer: Trainer, directory: Path) -> list[Domain]:
    """Of what was written: weights are rounded there."""
    domains = []
    tests = trainer.corpus.test
    model = load_model(directory).to(trainer.device)
    prophet = load_prophet(directory) if trainer.config.starts else None
    if prophet is not None:
        prophet.to(trainer.device)
    context = model.config.max_position_embeddings
    length = prompt_bytes(context, tests)
    scoring = build_decoder(
        model, None, slots=SCORED_AT_ONCE, device=trainer.device, dtype=torch.float32
    )
    for sample in tests:
        figures, samples = [], []
        prompts = spread_prompts(sample, trainer.config.test_prompts, length)
        for temperature in TEMPERATURES if prophet else ():
            assert prophet is not None
            for draft_length in DRAFT_LENGTHS:
                acceptance, outputs = measure_acceptance(
                    model,
                    prophet,
                    prompts,
                    temperature=temperature,
                    draft_length=draft_length,
                )
                figures.append(acceptance)
            samples.append((temperature, prompts[0], outputs[0]))
        bits = bits_per_byte(scoring, sample.content, SCORED_BYTES)
        domains.append(
            Domain(
                name=sample.name,
                scored=min(SCORED_BYTES, len(sample.content)),
                bits=round(bits, 4),
                prompts=len(prompts),
                prompt_bytes=length,
                new_bytes=min(NEW_BYTES, context - length),
                acceptance=figures,
                samples=samples,
            )
        )
    return domains
