"""`python -m train --data FILE... --out DIR`: trains model and prophet, exports a checkpoint.

`python -m train prophet --checkpoint DIR --data FILE... --out DIR` trains a prophet for the model
of a checkpoint, which is kept as it is.  The same command resumes a run that was stopped, on the
same data, wherever they lie now; of the flags those may be others that change no weight: --test,
--test-prompts, --evaluate-every, --save-every, --demonstrate-every, --tensorboard.  With --export
it turns what it has so far into a checkpoint; under torchrun several processes share each batch.  A
run that diverged goes on from its best weights with other rates:
--start-from DIR/best.pt --out ANOTHER.

The status is 0 where all went well, 2 where something was refused before anything was trained, 1
where training, or writing what it made, failed.
"""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from train.arguments import Parser, path_text, within
from train.config import PRESETS, ModelShape, TrainConfig
from train.export import export
from train.limits import COUNT, flag
from train.save import TrainingError
from train.trainer import Trainer
from train.world import World, require_present

PROPHET_FIELDS = ("prophet_kind", "prophet_depth", "leading_states", "draft_length", "eos_byte")
"""What of the shape is asked for with a frozen model: the rest is the model's."""

TUPLES = {"mix": float, "windows": int, "window_shares": float}
"""Kinds of the list flags that are not paths."""

HELP = {
    "mix": "how often each data path is drawn from, as weights: each is a source of its own then",
    "validation": "files that choose the best weights, each a sample of its own; "
    "by default a share of the data",
    "test": "files for the card's figures, likewise; by default the validation bytes",
    "test_prompts": "prompts of each test file on which acceptance is measured",
    "validation_fraction": "share of the data kept for validation",
    "split": "what goes to validation: the last fraction of each source, or whole files",
    "separate": "put the end-of-document byte behind each file of a source of several",
    "data_limit": "bytes used of each source, 0 for all, as it must be with --split file",
    "start_from": "directory of a run whose last weights and optimizer state to begin with; "
    "best.pt in it for its best weights, or the directory of a checkpoint, for weights alone",
    "steps": "steps of the whole run; the rate's schedule is made for them",
    "batch": "rows of the first window in a batch",
    "accumulate": "batches per step",
    "windows": "bytes per row, in the order in which the run goes through them",
    "window_shares": "share of the steps that each window gets",
    "starts": "share of the offsets at which the prophet is trained, 0: the model alone",
    "detach": "keep the prophet's gradient out of the model",
    "prophet_weight": "weight of the prophet's loss beside the model's",
    "prophet_loss": "cross_entropy with the data's byte; kl, tv, lk or coupled with the model",
    "prophet_reach": "weigh each drafted place by the probability that a round gets there",
    "prophet_curriculum": "first share of the steps, in which drafted places rise from one to all",
    "optimizer": "muon (matrices; AdamW for the rest), adamw or adam",
    "muon_rate": "rate of Muon's matrices",
    "muon_momentum": "momentum of Muon's matrices",
    "adam_rate": "rate of Adam and AdamW",
    "weight_decay": "decoupled decay of Muon and AdamW",
    "warmup": "steps in which the rates rise",
    "decay_fraction": "last share of the steps, in which the rates fall to zero",
    "clip": "largest norm of the gradient, 0 for no clipping",
    "seed": "of weights, samples and offsets",
    "dtype": "auto, bfloat16 or float32, for the products; weights are kept in float32",
    "compile": "run forward and backward through torch.compile",
    "evaluate_every": "steps between validations",
    "save_every": "steps between saves",
    "demonstrate_every": "steps between texts decoded both ways, 0 for none",
    "tensorboard": "write event files too (needs the package tensorboard)",
    "validation_bytes": "bytes of each validation source that are scored",
    "hidden_size": "width of model and prophet",
    "depth": "layers of the model",
    "heads": "query heads",
    "kv_heads": "key and value heads",
    "intermediate_size": "width of the feed-forward layers",
    "context": "longest text in bytes",
    "rope_theta": "base of the rotary embedding",
    "prophet_kind": "autoregressive or parallel",
    "prophet_depth": "layers of the autoregressive prophet",
    "leading_states": "states of the model that the autoregressive prophet is given",
    "draft_length": "bytes per round that the prophet is trained to draft",
    "eos_byte": "byte that ends a document, -1 for none",
}


def _add_flags(
    group: argparse._ArgumentGroup, record: type[Any], defaults: object, skip: set[str]
) -> None:
    for item in fields(record):
        if item.name in skip:
            continue
        name, default = flag(item.name), getattr(defaults, item.name)
        words = " ".join(map(str, default)) if isinstance(default, tuple) else default
        shown = HELP[item.name] + (f" (default: {words})" if words != "" else "")
        if isinstance(default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, help=shown)
        elif isinstance(default, tuple):
            kind = TUPLES.get(item.name, path_text)
            group.add_argument(name, nargs="+", type=kind, help=shown)
        else:
            kind = path_text if item.name == "start_from" else type(default)
            group.add_argument(name, type=kind, help=shown)


def parse(arguments: list[str]) -> tuple[TrainConfig, argparse.Namespace]:
    """The run's configuration and the flags that are not part of it."""
    prophet_alone = arguments[:1] == ["prophet"]
    first = Parser(add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="default")
    known, _ = first.parse_known_args(arguments)
    base = PRESETS[known.preset]
    parser = Parser(
        prog="python -m train" + " prophet" * prophet_alone,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[first],
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        type=path_text,
        help="files, directories or globs; plain, .gz, .bz2, .xz, .zip; together one source, "
        "in the order given, unless --mix weighs them; of directories what is no data is left "
        "out: hidden files, this run, other runs and checkpoints, weights, programs, media",
    )
    out = Path("runs", "prophet" if prophet_alone else known.preset)
    parser.add_argument(
        "--out",
        type=lambda text: Path(path_text(text)),
        default=out,
        help=f"directory of the run (default: {out})",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--max-steps", type=within(int, COUNT), help="stop after so many, to go on another time"
    )
    parser.add_argument(
        "--export",
        action="store_true",
        default=False,
        help="train no further: export the best weights of the run so far",
    )
    parser.add_argument(
        "--about-data", default="", help="what the data is and its licences, for the model card"
    )
    skip = {"shape", "data", "frozen"}
    if prophet_alone:
        parser.add_argument(
            "--checkpoint", required=True, type=path_text, help="directory of the frozen model"
        )
        skip |= {f.name for f in fields(ModelShape)} - set(PROPHET_FIELDS)
    _add_flags(parser.add_argument_group("run"), TrainConfig, base, skip)
    _add_flags(parser.add_argument_group("shape"), ModelShape, base.shape, skip)
    options = parser.parse_args(arguments[1:] if prophet_alone else arguments)
    given = vars(options)
    shape_names = {f.name for f in fields(ModelShape)}
    shape = replace(base.shape, **{k: v for k, v in given.items() if k in shape_names})
    changes: dict[str, Any] = {
        f.name: tuple(given[f.name]) if isinstance(given[f.name], list) else given[f.name]
        for f in fields(TrainConfig)
        if f.name in given
    }
    frozen = given.get("checkpoint", "")
    config = replace(base, shape=shape, frozen=frozen, **changes)
    return config.with_absolute_paths(), options


def begin(arguments: list[str], world: World) -> tuple[Trainer, argparse.Namespace]:
    """A trainer that has taken up its run, or begun one."""
    config, options = parse(arguments)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out: {options.out} is not a directory")
    device = world.device(options.device)
    require_present(device)
    world.join(device)
    trainer = Trainer(config, options.out, device, world)
    resumed = trainer.resume()
    if options.export and not resumed:
        raise TrainingError(f"--export: {trainer.save_path} is not there: nothing was trained")
    if resumed:
        trainer.notes.append(f"resumed {trainer.save_path} at step {trainer.step}")
    return trainer, options


def finish(trainer: Trainer, options: argparse.Namespace) -> None:
    if trainer.world.leads:
        for note in trainer.notes:
            print(note)
    if not options.export:
        trainer.run(getattr(options, "max_steps", None))
    if not trainer.world.leads:
        return
    if trainer.step < trainer.config.steps and not options.export:
        print(
            f"stopped at step {trainer.step}; the same command goes on from there, "
            "with --export it makes a checkpoint of it"
        )
    else:
        export(trainer, options.out / "checkpoint", options.about_data)
        print(f"exported {options.out / 'checkpoint'}")


def main(arguments: list[str]) -> int:
    world = World()
    status = 2
    try:
        trainer, options = begin(arguments, world)
        status = 1
        finish(trainer, options)
    except (TrainingError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return status
    finally:
        world.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
