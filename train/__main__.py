"""`python -m train --data FILE... --out DIR`: trains model and prophet, exports a checkpoint."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from train.config import ModelShape, TrainConfig
from train.data import DataError
from train.export import export
from train.trainer import Trainer, TrainingError


def _add_flags(parser: argparse.ArgumentParser, record: type[Any]) -> None:
    for item in fields(record):
        if item.name in ("shape", "data"):
            continue
        flag = "--" + item.name.replace("_", "-")
        default = item.default
        if isinstance(default, bool):
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, dest=item.name
            )
        elif isinstance(default, tuple):
            kind = float if item.name == "mix" else str
            parser.add_argument(flag, nargs="+", type=kind, default=(), dest=item.name)
        else:
            parser.add_argument(flag, type=type(default), default=default, dest=item.name)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train", description=__doc__, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--data", nargs="+", required=True, help="files to train on, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--about-data", default="", help="what the data is and its licences, for the model card"
    )
    _add_flags(parser.add_argument_group("run"), TrainConfig)
    _add_flags(parser.add_argument_group("shape"), ModelShape)
    return parser.parse_args(arguments)


def config_from(options: argparse.Namespace) -> TrainConfig:
    given = vars(options)
    shape = ModelShape(**{f.name: given[f.name] for f in fields(ModelShape)})
    rest = {f.name: given[f.name] for f in fields(TrainConfig) if f.name != "shape"}
    lists = {name: tuple(rest.pop(name)) for name in ("data", "mix", "validation")}
    return TrainConfig(shape=shape, **lists, **rest).with_absolute_paths()


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(config_from(options), options.out, torch.device(options.device))
        if trainer.resume():
            print(f"resumed {trainer.save_path} at step {trainer.step}")
        trainer.run()
        if trainer.step < trainer.config.steps:
            print(f"stopped at step {trainer.step}; the same command goes on from there")
            return 0
        export(trainer, options.out / "checkpoint", options.about_data)
        print(f"exported {options.out / 'checkpoint'}")
    except (DataError, TrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
