"""`python -m bench.auto`: mode auto against base and fixed draft lengths, through the engine.

Answers are wanted whole.  A turn decodes the same prompts with the same seeds once in every mode,
in an order that changes from turn to turn; base, auto and base without a prophet are side by side,
for a shared machine is another a second later.  Outputs are compared.  Ratios to base are paired by
turn; the lower bound is that of the 95 % interval of their median, from their order alone (sign
test), so that a turn which something else held up counts like any other.  A turn ends with its last
row; how long a row waits for its own end in the mean is told beside that.  Base itself is held
against an engine that has no prophet, which is asked in the same turns.  In every
`--others-every`-th turn auto is also held against fixed draft lengths, against itself with the
prophet alone, and with what is looked up in the text alone.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.decode import load_prompts
from bench.report import machine, write_json
from server.engine import Engine
from server.loading import load_engine
from server.memory import spare_collector
from server.messages import Event, Finished, Mode, Progress, Submission
from server.settings import Settings
from specdec.sampling import SamplingParams

BARE, PROPHET, LOOKUP = "no prophet", "prophet alone", "lookup alone"
PAIRED = ("base", "auto", BARE)


class Receiver:
    def __init__(self) -> None:
        self.output, self.done = b"", threading.Event()
        self.rounds, self.ended = 0, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress | Finished):
            self.output += event.output
        if not isinstance(event, Progress):
            assert isinstance(event, Finished), event
            self.rounds, self.ended = event.speculation.rounds, time.perf_counter()
            self.done.set()


class Turn(NamedTuple):
    """Seconds until all rows are done, their outputs, bytes per round, and the mean of the seconds
    until each row is done."""

    seconds: float
    outputs: list[bytes]
    bytes_per_round: float
    latency: float


def run(
    engine: Engine,
    prompts: list[bytes],
    mode: Mode,
    most: int,
    lookup: int,
    temperature: float,
    tokens: int,
) -> Turn:
    """The prompts together, a row each, behind ones that share nothing with them."""
    _forget(engine, len(prompts))
    receivers = [Receiver() for _ in prompts]
    params = SamplingParams(temperature=temperature)
    began = time.perf_counter()
    for index, (prompt, receiver) in enumerate(zip(prompts, receivers, strict=True)):
        engine.submit(
            Submission(
                f"{index}",
                prompt,
                tokens,
                params,
                index,
                mode,
                most,
                eos=None,
                interval_s=math.inf,
                lookup_length=lookup,
            ),
            receiver,
        )
    for receiver in receivers:
        receiver.done.wait()
    seconds = time.perf_counter() - began
    return Turn(
        seconds,
        [receiver.output for receiver in receivers],
        len(prompts) * tokens / sum(receiver.rounds for receiver in receivers),
        statistics.mean(receiver.ended for receiver in receivers) - began,
    )


def _forget(engine: Engine, slots: int) -> None:
    """Has other prompts consumed: one that a slot still holds would be spared to the next mode."""
    receivers = [Receiver() for _ in range(slots)]
    for index, receiver in enumerate(receivers):
        prompt = b"%d forgets" % index
        engine.submit(
            Submission(f"{index}", prompt, 8, SamplingParams(), 0, Mode.BASE, 0, None), receiver
        )
    for receiver in receivers:
        receiver.done.wait()


def load_bare(settings: Settings) -> Engine:
    """An engine for the same model that knows of no prophet."""
    with tempfile.TemporaryDirectory() as name:
        for path in settings.checkpoint.resolve().iterdir():
            if not path.name.startswith("prophet"):
                (Path(name) / path.name).symlink_to(path)
        return load_engine(settings.model_copy(update={"checkpoint": Path(name)}))


def lower_bound(ratios: list[float]) -> float | None:
    """What the median is above with 97.5 %: nothing is known from fewer than six.

    >>> lower_bound([5, 3, 1, 2, 6, 4]), lower_bound([float(n) for n in range(1, 41)])
    (1, 14.0)
    """
    count, below, bound = len(ratios), 0.0, None
    for place, ratio in enumerate(sorted(ratios)):
        # the chance that no more than `place` of them lie below the median
        below += math.comb(count, place) / 2**count
        if below > 0.025:
            break
        bound = ratio
    return bound


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.auto", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--domain", nargs="+", default=["code", "prose"])
    parser.add_argument("--draft-length", type=int, nargs="+", default=[2, 3, 5, 8])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=9, help="six or more have a lower bound")
    parser.add_argument(
        "--others-every",
        type=int,
        default=1,
        help="turns of base and auto to one in which the other modes are asked too",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.others_every < 1:
        parser.error("--others-every must be at least 1")
    settings = Settings(checkpoint=options.checkpoint, max_batch=max(options.batch))
    engine, bare = load_engine(settings), load_bare(settings)
    torch.set_num_threads(1)
    spare_collector()  # as the server does
    print(
        "domain  batch  temp    base B/s    auto B/s  ratio [lower 95 %]  each by itself"
        "  best fixed γ  auto/best  base/no prophet [lower 95 %]"
    )
    most, lookup = engine.info.longest_draft, engine.info.longest_lookup
    modes = {"base": (Mode.BASE, 0, 0), "auto": (Mode.AUTO, most, lookup)}
    modes |= {str(n): (Mode.SPECULATIVE, n, 0) for n in options.draft_length}
    modes |= {PROPHET: (Mode.AUTO, most, 0), LOOKUP: (Mode.AUTO, 0, lookup)}
    modes[BARE] = modes["base"]
    results, differing = [], 0
    for domain in options.domain:
        prompts = load_prompts(domain)
        for temperature in options.temperature:
            for batch in options.batch:
                seconds: dict[str, list[float]] = {name: [] for name in modes}
                bytes_per_round: dict[str, list[float]] = {name: [] for name in modes}
                latency: dict[str, list[float]] = {name: [] for name in modes}
                for turn in range(options.turns):
                    chosen = [prompts[(turn * batch + i) % len(prompts)] for i in range(batch)]
                    asked = PAIRED if turn % options.others_every else list(modes)
                    names, outputs = _order(asked, random.Random(turn)), {}
                    for name in names:
                        took = run(
                            bare if name == BARE else engine,
                            chosen,
                            *modes[name],
                            temperature,
                            options.tokens,
                        )
                        outputs[name] = took.outputs
                        seconds[name].append(took.seconds)
                        bytes_per_round[name].append(took.bytes_per_round)
                        latency[name].append(took.latency)
                    differing += sum(outputs[name] != outputs["base"] for name in names)
                total = batch * options.tokens
                row = _row(seconds, bytes_per_round, total, options.others_every)
                waits = zip(latency["base"], latency["auto"], strict=True)
                row["latency_ratio"] = round(statistics.median(a / b for a, b in waits), 3)
                results.append(
                    {"domain": domain, "temperature": temperature, "batch": batch, **row}
                )
                print(
                    f"{domain:6} {batch:6} {temperature:5} {row['base_bytes_per_second']:11} "
                    f"{row['auto_bytes_per_second']:11} {row['ratio']:7} [{row['lower_95']}] "
                    f"{row['latency_ratio']:12} {row['best_fixed']:>12} "
                    f"{row['auto_to_best_fixed']:>10} "
                    f"{row['base_to_no_prophet']:>10} [{row['base_to_no_prophet_lower_95']}]",
                    flush=True,
                )
    engine.stop()
    bare.stop()
    print(f"{differing} turns with outputs that differ from base")
    if options.json:
        facts = machine(torch.device("cpu"))
        counts = {"turns": options.turns, "others_every": options.others_every}
        write_json(options.json, {**facts, **counts, "results": results})
    return 1 if differing and engine.info.exactness == "exact" else 0


def _order(modes: Sequence[str], draw: random.Random) -> list[str]:
    """Nobody always behind the same other, and side by side what has lower bounds."""
    paired = list(PAIRED)
    others = [name for name in modes if name not in paired]
    for part in (paired, others):
        draw.shuffle(part)
    return paired + others if draw.random() < 0.5 else others + paired


def _row(
    seconds: dict[str, list[float]],
    bytes_per_round: dict[str, list[float]],
    total: int,
    every: int,
) -> dict[str, object]:
    """The best fixed length is the one with the best median, plain decoding among them.

    Of `seconds` base, auto and base without a prophet have one for each turn, others one for every
    so many, and are held against base and auto of the same turns.
    """
    same = {n: values[::every] if n in PAIRED else values for n, values in seconds.items()}
    middle = {name: statistics.median(values) for name, values in same.items()}
    fixed = min((n for n in middle if n == "base" or n.isdecimal()), key=middle.__getitem__)
    ratios = [a / b for a, b in zip(seconds["base"], seconds["auto"], strict=True)]
    against = [a / b for a, b in zip(same[fixed], same["auto"], strict=True)]
    to_bare = [a / b for a, b in zip(seconds[BARE], seconds["base"], strict=True)]
    return {
        "base_bytes_per_second": round(total / statistics.median(seconds["base"])),
        "auto_bytes_per_second": round(total / statistics.median(seconds["auto"])),
        "ratio": round(statistics.median(ratios), 3),
        "lower_95": _rounded(lower_bound(ratios)),
        "best_fixed": "0" if fixed == "base" else fixed,
        "auto_to_best_fixed": round(statistics.median(against), 3),
        "base_to_no_prophet": round(statistics.median(to_bare), 3),
        "base_to_no_prophet_lower_95": _rounded(lower_bound(to_bare)),
        "bytes_per_second": {name: round(total / value) for name, value in middle.items()},
        "bytes_per_round": {
            name: round(statistics.median(values), 3) for name, values in bytes_per_round.items()
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


if __name__ == "__main__":
    print(json.dumps(machine(torch.device("cpu"))))
    sys.exit(main(sys.argv[1:]))
