"""`python -m bench.training`: training throughput beside what matrix products reach.

The yardstick is the products of the model's own shapes (forward, input gradient and weight gradient
of every linear) in the training type, on this machine, in this run.  A step's operations counted
are those of its linears and of causal attention, model and prophet; what else a step does is what
the share is lost to.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.report import machine, quartiles, write_json
from train.__main__ import parse
from train.config import TrainConfig
from train.trainer import Trainer


def linear_shapes(module: nn.Module) -> list[tuple[int, int]]:
    """(out, in) of every linear."""
    linears = (each for each in module.modules() if isinstance(each, nn.Linear))
    return [(each.out_features, each.in_features) for each in linears]


def product_rate(
    shapes: list[tuple[int, int]], rows: int, dtype: torch.dtype, device: str
) -> float:
    """Operations per second of the three products of each shape over `rows` rows."""
    cases = []
    for out, inner in shapes:
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randn(out, inner, device=device, dtype=dtype)
        cases.append((x, weight, x @ weight.T))
    seconds = []
    for _ in range(5):
        _synchronize(device)
        began = time.perf_counter()
        for x, weight, y in cases:
            torch.matmul(x, weight.T)
            torch.matmul(y, weight)
            torch.matmul(y.T, x)
        _synchronize(device)
        seconds.append(time.perf_counter() - began)
    operations = sum(6 * rows * out * inner for out, inner in shapes)
    return operations / quartiles(seconds)[1]


def step_operations(trainer: Trainer) -> float:
    """Operations of a step: 2 for a product and sum, three times for forward and backward."""
    config = trainer.config
    rows, length = config.window_at(trainer.step)
    rows *= config.accumulate
    shape = config.shape
    model = sum(out * inner for out, inner in linear_shapes(trainer.model))
    # a query sees half of the window on average: scores and mixing
    attention = 2 * shape.depth * shape.hidden_size * length / 2
    total = 6.0 * rows * length * (model + attention)
    if config.starts:
        prophet = sum(out * inner for out, inner in linear_shapes(trainer.prophet))
        starts = max(1, round((length - shape.draft_length) * config.starts))
        places = shape.leading_states + shape.draft_length
        total += 6.0 * rows * starts * places * prophet
    return total


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure(config: TrainConfig, device: str, steps: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(config, Path(directory), torch.device(device))
        rows, length = config.window_at(0)
        operations = step_operations(trainer)
        shapes = linear_shapes(trainer.model)
        rate = product_rate(shapes, rows * length, trainer.dtype, device)
        seconds = []
        for step in range(steps + 2):
            _synchronize(device)
            began = time.perf_counter()
            trainer.train_step()
            _synchronize(device)
            if step >= 2:
                seconds.append(time.perf_counter() - began)
        median = quartiles(seconds)[1]
    return {
        "bytes_per_step": rows * length * config.accumulate,
        "bytes_per_second": round(rows * length * config.accumulate / median),
        "tera_operations_per_second": round(operations / median / 1e12, 4),
        "products_alone": round(rate / 1e12, 4),
        "share": round(operations / median / rate, 3),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.training",
        description=__doc__,
        epilog="Further flags are those of `python -m train`.",
    )
    parser.add_argument("--steps-timed", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options, rest = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "random.bin"
        data.write_bytes(np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes())
        config, flags = parse([*rest, "--data", str(data), "--out", directory])
        record = {
            **machine(torch.device(flags.device)),
            **measure(config, flags.device, options.steps_timed),
        }
    print(json.dumps(record))
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
