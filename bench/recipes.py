"""`python -m bench.recipes ARMS.toml --out DIR`: training recipes side by side.

Each arm of the file is a run of `python -m train` with flags of its own besides the common ones;
arms run one after another, each in its directory, and resume if stopped. What counts is printed as
a Markdown table: bits per byte on the run's validation samples, and mean bytes per round at two
temperatures on the benchmark's prompts, which no arm has seen.

    [common]
    flags = ["--data", "corpus.bin", "--steps", "200"]
    [arms]
    kl = ["--prophet-loss", "kl"]
    tv = ["--prophet-loss", "tv"]

An arm whose flags begin with "prophet" trains a prophet for a frozen model. An arm that is a list
of such lists is runs one after another, each in its own directory; {1} is the directory of the
first. Minutes are those of all its runs.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path

from bench.decode import load_prompts
from specdec.checkpoint import load_model, load_prophet
from train.__main__ import main as train
from train.measurement import measure_acceptance

DRAFT_LENGTH = 5
TEMPERATURES = (0.0, 1.0)
DOMAINS = ("code", "prose")


def bytes_per_round(checkpoint: Path) -> dict[str, float]:
    """Mean bytes per round by domain and temperature; equal seeds and prompts for every arm."""
    model, prophet = load_model(checkpoint), load_prophet(checkpoint)
    if prophet is None:
        return {}
    result = {}
    for domain in DOMAINS:
        for temperature in TEMPERATURES:
            figures, _ = measure_acceptance(
                model,
                prophet,
                load_prompts(domain),
                temperature=temperature,
                draft_length=DRAFT_LENGTH,
            )
            result[f"{domain} T={temperature:g}"] = figures.bytes_per_round
    return result


def row(name: str, directories: list[Path]) -> dict[str, object]:
    records = [json.loads((d / "checkpoint" / "training.json").read_text()) for d in directories]
    record = records[-1]
    bits = {
        f"{sample} bits": figures["model"]
        for sample, figures in record["curve"][-1].items()
        if isinstance(figures, dict)
    }
    return {
        "arm": name,
        "steps": " + ".join(str(each["steps"]) for each in records),
        "minutes": round(sum(each["seconds"] for each in records) / 60, 1),
        **bits,
        **bytes_per_round(directories[-1] / "checkpoint"),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arms", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    plan = tomllib.loads(options.arms.read_text(encoding="utf-8"))
    rows = []
    for name, arm in plan["arms"].items():
        runs = arm if isinstance(arm[0], list) else [arm]
        directories = [
            options.out / (name if len(runs) == 1 else f"{name}-{k + 1}") for k in range(len(runs))
        ]
        for flags, directory in zip(runs, directories, strict=True):
            own = [flag.format(None, *directories) for flag in flags]
            verb = [own.pop(0)] if own[0] == "prophet" else []
            command = [*verb, *plan["common"]["flags"], *own, "--out", str(directory)]
            if not (directory / "checkpoint" / "README.md").exists() and train(command):
                print(f"error: arm {name} failed in {directory}", file=sys.stderr)
                return 1
        rows.append(row(name, directories))
        print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for item in rows:
        print(f"| {' | '.join(str(item.get(column, '')) for column in columns)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
