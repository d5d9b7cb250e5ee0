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

An arm whose flags begin with "prophet" trains a prophet for a frozen model.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path

import torch

from bench.decode import load_prompts
from specdec.build import build_decoder
from specdec.checkpoint import load_model, load_prophet
from specdec.decoder import Job, generate
from specdec.sampling import SamplingParams
from train.__main__ import main as train

DRAFT_LENGTH = 5
NEW_BYTES = 192
TEMPERATURES = (0.0, 1.0)
DOMAINS = ("code", "prose")
SLOTS = 16


def bytes_per_round(checkpoint: Path) -> dict[str, float]:
    """Mean bytes per round by domain and temperature; equal seeds and prompts for every arm."""
    model, prophet = load_model(checkpoint), load_prophet(checkpoint)
    if prophet is None:
        return {}
    device = torch.device("cpu")
    decoder = build_decoder(model, prophet, slots=SLOTS, device=device, dtype=torch.float32)
    result = {}
    for domain in DOMAINS:
        prompts = load_prompts(domain)
        for temperature in TEMPERATURES:
            rounds = emitted = 0
            for begin in range(0, len(prompts), SLOTS):
                params = SamplingParams(temperature=temperature)
                jobs = [
                    Job(prompt, NEW_BYTES, params, begin + i, DRAFT_LENGTH)
                    for i, prompt in enumerate(prompts[begin : begin + SLOTS])
                ]
                for out in generate(decoder, jobs):
                    rounds += out.rounds
                    emitted += len(out.output)
            result[f"{domain} T={temperature:g}"] = round(emitted / rounds, 3)
    return result


def row(name: str, directory: Path) -> dict[str, object]:
    record = json.loads((directory / "checkpoint" / "training.json").read_text())
    bits = {
        f"{sample} bits": figures["model"]
        for sample, figures in record["curve"][-1].items()
        if isinstance(figures, dict)
    }
    return {
        "arm": name,
        "steps": record["steps"],
        "minutes": round(record["seconds"] / 60, 1),
        **bits,
        **bytes_per_round(directory / "checkpoint"),
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
    for name, flags in plan["arms"].items():
        directory = options.out / name
        command = [*flags, *plan["common"]["flags"], "--out", str(directory)]
        if not (directory / "checkpoint" / "README.md").exists() and train(command):
            print(f"error: arm {name} failed", file=sys.stderr)
            return 1
        rows.append(row(name, directory))
        print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for item in rows:
        print(f"| {' | '.join(str(item.get(column, '')) for column in columns)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
