"""The training loop: steps, validation, saves, resume.

Knows when; what is minimised is `train.objective`, what is drawn `train.data`.  A save holds
weights, optimizer state, step and curve, and is renamed into place, so that a killed run resumes
from its last one to the losses of a run never killed.
"""

import json
import math
import os
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from specdec.model import ByteLlama
from specdec.prophet import AutoregressiveProphet
from train.config import TrainConfig
from train.data import Corpus
from train.objective import Losses, objective, random_starts
from train.optimizer import Optimizers


class TrainingError(RuntimeError):
    """Training cannot go on; the last save is intact."""


class Trainer:
    """One run in one directory."""

    def __init__(self, config: TrainConfig, directory: Path, device: torch.device) -> None:
        self.config = config
        self.directory = directory
        self.device = device
        longest = max(config.window, config.long_window)
        self.corpus = Corpus.open(
            config.data, config.mix, config.validation, config.validation_fraction, longest
        )
        torch.manual_seed(config.seed)
        self.model = ByteLlama(config.shape.model).to(device)
        self.prophet = AutoregressiveProphet(config.shape.prophet).to(device)
        self.optimizers = Optimizers(config, self.model, self.prophet)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, object]] = []
        self.stopping = False

    @property
    def save_path(self) -> Path:
        return self.directory / "last.pt"

    def save(self) -> None:
        state = {
            "config": self.config.to_json(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": json.dumps(self.curve),
            "model": self.model.state_dict(),
            "prophet": self.prophet.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }
        temporary = self.save_path.with_suffix(".pt.partial")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.save_path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(f"{self.save_path}: {error.strerror}; the last save is kept") from (
                error
            )

    def resume(self) -> bool:
        """Continues from the last save, if there is one; refuses one of another configuration."""
        if not self.save_path.exists():
            return False
        state = torch.load(self.save_path, map_location=self.device, weights_only=True)
        saved = TrainConfig.from_json(state["config"])
        if saved != self.config:
            raise TrainingError(
                f"{self.save_path} was trained with another configuration; "
                "give the flags of that run or another --out"
            )
        self.model.load_state_dict(state["model"])
        self.prophet.load_state_dict(state["prophet"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.curve = json.loads(state["curve"])
        return True

    def autocast(self) -> AbstractContextManager[object]:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def losses(self, tokens: torch.Tensor, step: int, share: float) -> Losses:
        config = self.config
        gamma = config.shape.draft_length
        starts = random_starts(config.seed, step, tokens.shape[1], gamma, share)
        with self.autocast():
            return objective(
                self.model,
                self.prophet,
                tokens.to(self.device),
                starts.to(self.device),
                gamma,
                detach=config.detach,
                prophet_weight=config.prophet_weight,
            )

    def train_step(self) -> Losses:
        config = self.config
        rows, length = config.window_at(self.step)
        losses = self.losses(
            self.corpus.batch(config.seed, self.step, rows, length), self.step, config.starts
        )
        total = float(losses.total.detach())
        if not math.isfinite(total):
            raise TrainingError(f"the loss at step {self.step} is {total}")
        losses.total.backward()
        self.optimizers.step(config.rate_at(self.step), config.clip)
        self.step += 1
        return losses

    @torch.no_grad()
    def evaluate(self) -> dict[str, object]:
        """Bits per byte of both and agreement by draft, on each validation sample."""
        config = self.config
        window = config.window_at(self.step)[1]
        result: dict[str, object] = {"step": self.step, "seconds": round(self.seconds, 1)}
        for sample in self.corpus.validation:
            rows = self.corpus.validation_rows(sample, config.validation_bytes, window)
            parts = [self.losses(part, 0, config.starts) for part in rows.split(config.batch)]
            sizes = torch.tensor([len(part) for part in rows.split(config.batch)]) / len(rows)

            def mean(name: str, parts: list[Losses] = parts, sizes: torch.Tensor = sizes) -> float:
                values = torch.stack([getattr(part, name).mean().float().cpu() for part in parts])
                return round(float((values * sizes).sum()), 4)

            result[sample.name] = {
                "model": mean("model_bits"),
                "prophet": mean("prophet_bits"),
                "agreement": mean("agreement"),
            }
        self.curve.append(result)
        return result

    def run(self) -> None:
        """Trains to the last step, or until SIGTERM or SIGINT, and saves."""
        config = self.config
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        bar = tqdm(total=config.steps, initial=self.step, dynamic_ncols=True, unit="step")
        try:
            while self.step < config.steps and not self.stopping:
                began = time.perf_counter()
                rows, length = config.window_at(self.step)
                losses = self.train_step()
                elapsed = time.perf_counter() - began
                self.seconds += elapsed
                bar.set_postfix_str(
                    f"model {losses.model_bits:.3f} prophet {losses.prophet_bits:.3f} bits/byte, "
                    f"{rows * length / elapsed:,.0f} bytes/s"
                )
                bar.update()
                if self.step % config.evaluate_every == 0 or self.step == config.steps:
                    bar.write(json.dumps(self.evaluate()))
                if self.step % config.save_every == 0:
                    self.save()
            self.save()
        finally:
            bar.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
