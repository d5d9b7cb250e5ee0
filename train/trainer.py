"""The training loop: steps, validation, saves, resume.

Knows when; what is minimised is `train.objective`, what is drawn `train.data`, how a save gets to
the disk `train.save`.  A save holds weights, optimizer state, step and curve, and what a step draws
depends on the seed and its number alone: a killed run resumes to the losses of one never stopped.
"""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from tqdm import tqdm

from specdec.model import ByteLlama
from train.config import TrainConfig
from train.curve import write_curve, write_tensorboard
from train.data import Corpus
from train.data_files import DataFiles
from train.demonstration import demonstrate
from train.inventory import Entry, take_inventory, to_json
from train.networks import networks
from train.objective import Aim, Losses, objective, random_starts
from train.optimizer import Optimizers
from train.precision import matrix_type
from train.resume import require_same_run
from train.save import FORMAT, WHOLE, TrainingError, read_save, taking, write_save, writing
from train.source import Packing
from train.start import start_from
from train.world import World


class Trainer:
    """One run in one directory.

    `last.pt` there is the newest save, `best.pt` the weights of the best validation so far.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        device: torch.device,
        world: World | None = None,
    ) -> None:
        self.config, self.directory, self.device = config, directory, device
        self.world = world or World()
        for length in config.windows:
            self.world.require_even(config.rows_of(length))
        torch.manual_seed(config.seed)
        self.model, self.prophet = networks(config, device)
        eos = config.shape.eos_byte
        found = DataFiles(directory)
        with self.world.leader_first():
            self.corpus = Corpus.open(
                config.sources,
                config.mix,
                config.validation,
                Packing(
                    separator=eos if config.separate else None,
                    by_file=config.split == "file",
                    validation_fraction=config.validation_fraction,
                ),
                max(config.windows),
                directory / "data",
                config.data_limit,
                config.test,
                found,
            )
        self.notes = [told] if (told := found.told()) else []
        self.inventory: list[Entry] | None = None
        # what is faster is measured, and each process may have measured something else
        self.dtype = self.world.leaders(matrix_type(config.dtype, device))
        self.model.to(device)
        self.prophet.to(device)
        self.aim = Aim(
            gamma=config.shape.draft_length,
            detach=config.detach,
            frozen=bool(config.frozen),
            prophet_weight=config.prophet_weight,
            prophet_loss=config.prophet_loss,
            prophet_reach=config.prophet_reach,
        )
        self.optimizers = Optimizers(config, self.dtype, self.model, self.prophet)
        # validation and demonstration have shapes of their own: they stay uncompiled
        self.forward = self.model
        if config.compile:
            # a module too, which answers to all that the model does
            self.forward = cast(ByteLlama, torch.compile(self.model, dynamic=False))
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, Any]] = []
        self.earlier: list[dict[str, Any]] = []
        self.best = math.inf
        self.stopping = False

    @property
    def save_path(self) -> Path:
        return self.directory / "last.pt"

    @property
    def best_path(self) -> Path:
        return self.directory / "best.pt"

    def save(self) -> None:
        """The newest state; TrainingError instead of weights that are not finite."""
        if self.world.leads:
            if not all(p.isfinite().all() for p in self.optimizers.parameters):
                raise self._diverged(f"weights at step {self.step} are not finite")
            if self.inventory is None:
                self.inventory = take_inventory(self.corpus.files)
            write_save(
                self.save_path,
                {
                    "format": FORMAT,
                    "data": to_json(self.inventory),
                    "config": self.config.to_json(),
                    "step": self.step,
                    "seconds": self.seconds,
                    "dtype": str(self.dtype),
                    "best": self.best,
                    "curve": json.dumps(self.curve),
                    "earlier": json.dumps(self.earlier),
                    "model": self.model.state_dict(),
                    "prophet": self.prophet.state_dict(),
                    "optimizers": self.optimizers.state_dict(),
                },
            )

    def resume(self) -> bool:
        """Continues from the last save, if there is one; refuses one of another run.

        Without one, begins with the weights of `start_from`, if given, and of a run with the
        optimizer's state.
        """
        if not self.save_path.exists():
            if self.config.start_from:
                start_from(self, Path(self.config.start_from))
            return False
        state = read_save(self.save_path, self.device, WHOLE)
        self.inventory = require_same_run(self, state)
        with taking(self.save_path):
            self.take(state)
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.best = float(state.get("best", math.inf))
            self.curve, self.earlier = json.loads(state["curve"]), json.loads(state["earlier"])
        return True

    def take(self, state: dict[str, Any]) -> None:
        """Weights and optimizer state; what was measured as the faster type stays that."""
        self.model.load_state_dict(state["model"])
        self.prophet.load_state_dict(state["prophet"])
        if "optimizers" in state:  # the best save has none
            self.optimizers.load_state_dict(state["optimizers"])
        if self.config.dtype == "auto" and state["dtype"] != str(self.dtype):
            self.dtype = getattr(torch, state["dtype"].removeprefix("torch."))
            self.optimizers.multiply_in(self.dtype)

    def load_best(self) -> int:
        """Takes the weights of the best validation; returns their step."""
        if not self.best_path.exists():
            return self.step
        state = read_save(self.best_path, self.device)
        with taking(self.best_path):
            self.model.load_state_dict(state["model"])
            self.prophet.load_state_dict(state["prophet"])
        return int(state["step"])

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def losses(self, tokens: torch.Tensor, draw: int, model: ByteLlama, drafts: int) -> Losses:
        config = self.config
        starts = torch.zeros(0, dtype=torch.int64)
        if config.starts:
            gamma = config.shape.draft_length
            starts = random_starts(config.seed, draw, tokens.shape[1], gamma, config.starts)
        with self.autocast():
            return objective(
                model,
                self.prophet,
                tokens.to(self.device),
                starts.to(self.device),
                replace(self.aim, gamma=drafts),
            )

    def train_step(self) -> Losses:
        """One step of the optimizers; the losses returned are means over its batches."""
        config = self.config
        rows, length = config.window_at(self.step)
        parts = []
        for batch in range(config.accumulate):
            draw = self.step * config.accumulate + batch
            tokens = self.world.share(self.corpus.batch(config.seed, draw, rows, length))
            losses = self.losses(tokens, draw, self.forward, config.drafts_at(self.step))
            (losses.total / config.accumulate).backward()
            parts.append(losses)
        mean = _mean(parts, self.world)
        if not math.isfinite(float(mean.total)):
            raise self._diverged(f"the loss at step {self.step} is {float(mean.total)}")
        self.world.average_gradients(self.optimizers.parameters)
        norm = self.optimizers.clip(config.clip)
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm at step {self.step} is {norm}")
        self.optimizers.step(config.rate_at(self.step))
        self.step += 1
        return mean

    def _diverged(self, what: str) -> TrainingError:
        best = self.best_path
        way = f"; --start-from {best} goes on with other rates in another --out"
        return TrainingError(f"{what}; the last save is kept{way if best.exists() else ''}")

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Bits per byte of both and acceptance by draft, on each validation sample.

        Always in the longest window: bytes with more before them are easier, so that figures of
        different windows would not compare, and the best of them would be that of the longest.
        """
        config = self.config
        window = max(config.windows)
        result: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
        for sample in self.corpus.validation:
            rows = sample.spread(config.validation_bytes, window)
            parts = rows.split(config.rows_of(window))
            drafts = config.shape.draft_length
            losses = [self.losses(part, 0, self.model, drafts) for part in parts]
            sizes = torch.tensor([len(part) for part in parts]) / len(rows)

            def mean(
                name: str, losses: list[Losses] = losses, sizes: torch.Tensor = sizes
            ) -> torch.Tensor:
                values = torch.stack([getattr(part, name).float().cpu() for part in losses])
                return torch.tensordot(sizes, values, 1)

            figures: dict[str, Any] = {"model": round(float(mean("model_bits")), 4)}
            if config.starts:
                figures["prophet"] = round(float(mean("prophet_bits")), 4)
                figures["acceptance"] = [round(float(x), 4) for x in mean("acceptance")]
            result[sample.name] = figures
        self.curve.append(result)
        self._keep_if_best(result)
        return result

    def _keep_if_best(self, result: dict[str, Any]) -> None:
        """Of a frozen model the prophet counts, else the model."""
        figures = [result[sample.name] for sample in self.corpus.validation]
        if self.config.frozen:
            value = -sum(sum(f["acceptance"]) for f in figures) / len(figures)
        else:
            value = sum(f["model"] for f in figures) / len(figures)
        if value < self.best and self.world.leads:
            self.best = value
            weights = {"model": self.model.state_dict(), "prophet": self.prophet.state_dict()}
            write_save(self.best_path, {"step": self.step, "seconds": self.seconds, **weights})

    def run(self, most: int | None = None) -> None:
        """Trains to the last step, for `most` steps, or until SIGTERM or SIGINT, and saves."""
        config, talks = self.config, self.world.leads
        last = config.steps if most is None else min(config.steps, self.step + most)
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        if self.inventory is None and talks:
            self.inventory = take_inventory(self.corpus.files)
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            dynamic_ncols=True,
            unit="step",
            disable=not talks,
        )
        with bar, self._stopped_by_signals():
            if not self.step:
                self._look(bar)
            while self.step < last and not self.world.any(self.stopping):
                began = time.perf_counter()
                rows, length = config.window_at(self.step)
                losses = self.train_step()
                elapsed = time.perf_counter() - began
                self.seconds += elapsed
                prophet = f"prophet {losses.prophet_bits:.3f} " if config.starts else ""
                bar.set_postfix_str(
                    f"model {losses.model_bits:.3f} {prophet}bits/byte, "
                    f"{rows * config.accumulate * length / elapsed:,.0f} bytes/s"
                )
                bar.update()
                self._look(bar)
                if self.step % config.save_every == 0:
                    self.save()
            self.save()

    def _look(self, bar: "tqdm[Any]") -> None:
        """Validation and demonstration where the step is due for them, the first before any."""
        config = self.config
        if not self.world.leads:
            return
        if self.step % config.evaluate_every == 0 or self.step == config.steps:
            bar.set_postfix_str("validating")
            row = self.evaluate()
            bar.write(json.dumps(row))
            write_curve(self.directory, self.curve)
            if config.tensorboard:
                with writing(self.directory / "tensorboard"):
                    write_tensorboard(self.directory / "tensorboard", row)
        if config.demonstrate_every and self.step % config.demonstrate_every == 0:
            prophet = self.prophet if config.starts else None
            text = demonstrate(self.model, prophet, self.corpus, self.step)
            bar.write(text)
            path = self.directory / "demonstrations.log"
            with writing(path), path.open("a", encoding="utf-8") as log:
                log.write(text + "\n")

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True

        previous = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _mean(parts: list[Losses], world: World) -> Losses:
    def mean(name: str) -> torch.Tensor:
        return world.mean(torch.stack([getattr(part, name).detach() for part in parts]).mean(0))

    return Losses(mean("total"), mean("model_bits"), mean("prophet_bits"), mean("acceptance"))
