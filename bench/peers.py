"""`python -m bench.peers`: this server's engine beside transformers and llama.cpp, on CPU.

The same weights, prompts and lengths, greedy.  Each runs in a process of its own, since thread
pools disturb one another, and they are asked in turns: a turn has each continue the same prompts,
in an order that changes from turn to turn.  What is timed is a whole call in that process, prompt
included, and before it one of a single byte after other prompts.  No HTTP anywhere.

Before anything is timed all are asked for their logits over the same text and compared with the
float32 module.  Outputs are compared with those of mode base: where one differs first, the two
bytes must be as near each other, in the module's logits, as the errors that were seen allow.

Needs the extra `peers`; who is not installed is left out.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.decode import load_prompts
from bench.report import machine, write_json
from bench.runners import LlamaCpp, Ours, Runner, Transformers
from bench.served import add_checkpoint, asked_checkpoint
from bench.side import HEADER, Side, line, reference, report
from server.messages import Mode
from specdec.checkpoint import load_model, load_prophet
from specdec.model import ByteLlama

PACKAGES = {
    "transformers": ("transformers",),
    "compiled": ("transformers",),
    "llama.cpp": ("llama-cpp-python", "gguf"),
}
"""What each peer needs; `compiled` is transformers with a static cache and a compiled forward."""
NAMES = (*Mode, *PACKAGES)

LARGEST_ERROR = 0.05
"""Of logits, as a share of their deviation: a wrong norm or rotation is ten times that."""


@dataclass(frozen=True)
class Setup:
    """What a process needs to know to become a runner."""

    checkpoint: Path
    prophet: Path | None
    gguf: Path
    dtype: torch.dtype
    batch: int
    context: int

    def runner(self, name: str) -> Runner:
        if name == "llama.cpp":
            return LlamaCpp(self.gguf, self.batch, self.context)
        if name in PACKAGES:
            return Transformers(self.checkpoint, self.dtype, compiled=name == "compiled")
        return Ours(self.checkpoint, self.prophet, Mode(name), self.batch, self.dtype)


_runner: Runner
"""Of this process, if it is a peer's."""


def _begin(setup: Setup, name: str) -> None:
    global _runner
    _runner = setup.runner(name)


def _logits(text: bytes) -> torch.Tensor:
    return _runner.logits(text)


def _timed(prompts: list[bytes], tokens: int) -> tuple[float, list[bytes]]:
    began = time.perf_counter()
    outputs = _runner.generate(prompts, tokens)
    return time.perf_counter() - began, outputs


def measure(
    pools: dict[str, ProcessPoolExecutor],
    model: ByteLlama,
    prompts: list[bytes],
    *,
    batch: int,
    tokens: int,
    turns: int,
) -> dict[str, Side]:
    """ValueError where logits are not the model's."""
    sides = {name: Side() for name in pools}
    text = prompts[0] + pools[Mode.BASE].submit(_timed, prompts[:1], tokens).result()[1][0]
    expected = reference(model, text)
    for name, pool in pools.items():
        pool.submit(_timed, prompts[:batch], tokens).result()  # compiles what is compiled
        off = pool.submit(_logits, text).result() - expected
        sides[name].error = float(off.abs().max())
        sides[name].share = float(off.std() / expected.std())
        if sides[name].share > LARGEST_ERROR:
            raise ValueError(f"{name}: the logits are off by {sides[name].share:.0%}")
    names, heard = list(pools), []
    for turn in range(turns):
        chosen, others = _pick(prompts, batch, 2 * turn), _pick(prompts, batch, 2 * turn + 1)
        outputs = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # other prompts, which also leave no slot that holds the ones to come
            first, _ = pools[name].submit(_timed, others, 1).result()
            seconds, outputs[name] = pools[name].submit(_timed, chosen, tokens).result()
            sides[name].first_byte.append(first)
            sides[name].seconds.append(seconds)
        heard.append((chosen, outputs))
    for chosen, outputs in heard:
        for row, prompt in enumerate(chosen):
            for name, side in sides.items():
                side.agreement.add(model, prompt, outputs[Mode.BASE][row], outputs[name][row])
    return sides


def _pick(prompts: list[bytes], batch: int, index: int) -> list[bytes]:
    return [prompts[(index * batch + i) % len(prompts)] for i in range(batch)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--prophet", type=Path, help="a directory with another prophet")
    parser.add_argument("--who", nargs="+", choices=NAMES, default=NAMES, help="base always runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--domain", nargs="+", default=["code", "prose"])
    parser.add_argument("--prompt-bytes", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256, help="bytes generated per prompt")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    with asked_checkpoint(options) as checkpoint, tempfile.TemporaryDirectory() as directory:
        options.checkpoint = checkpoint
        return compare(options, Path(directory))


def compare(options: argparse.Namespace, temporary: Path) -> int:
    model, dtype = load_model(options.checkpoint), getattr(torch, options.dtype)
    directory = options.prophet or options.checkpoint
    prophet = load_prophet(directory, model_directory=options.checkpoint)
    names = [Mode.BASE, *_able(options.who, prophet is not None)]
    gguf = temporary / "model.gguf"
    if "llama.cpp" in names:
        from bench.gguf import write_gguf

        write_gguf(gguf, model, dtype)
    record: dict[str, object] = {
        **machine(torch.device("cpu")),
        **{package: version(package) for name in names for package in PACKAGES.get(name, ())},
        "weights": "random" if options.random else options.checkpoint.name,
        "prophet": prophet.config.kind if prophet else None,
        "dtype": options.dtype,
        "prompt_bytes": options.prompt_bytes,
        "tokens": options.tokens,
        "turns": options.turns,
    }
    print(json.dumps(record), f"\n{HEADER}", flush=True)
    results, wrong = [], 0
    for batch in options.batch:
        context = options.prompt_bytes + options.tokens
        setup = Setup(options.checkpoint, options.prophet, gguf, dtype, batch, context)
        with ExitStack() as stack:
            pools = {name: stack.enter_context(_process(setup, name)) for name in names}
            for domain in options.domain:
                size = options.prompt_bytes
                prompts = [p[:size] for p in load_prompts(domain) if len(p) >= size]
                sides = measure(
                    pools, model, prompts, batch=batch, tokens=options.tokens, turns=options.turns
                )
                for row in report(sides, batch, options.tokens):
                    print(line(domain, batch, row), flush=True)
                    results.append({"domain": domain, "batch": batch, **row})
                    wrong += int(str(row["no_near_ties"]))
    if options.json:
        write_json(options.json, {**record, "results": results})
    if wrong:
        print(f"error: {wrong} outputs part where no near-tie is", file=sys.stderr)
    return 1 if wrong else 0


def _able(names: list[str], prophet: bool) -> list[str]:
    """Those that can run here, and a line about each that cannot; mode base is understood."""
    able = []
    for name in names:
        try:
            for package in PACKAGES.get(name, ()):
                version(package)
        except PackageNotFoundError as error:
            print(f"{name} is left out: {error.name} is not installed")
            continue
        if name in (Mode.SPECULATIVE, Mode.AUTO) and not prophet:
            print(f"{name} is left out: there is no prophet")
        elif name != Mode.BASE:
            able.append(name)
    return able


def _process(setup: Setup, name: str) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=partial(_begin, setup, name)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
