"""`python -m bench.load`: many clients over real HTTP, and whether each gets what it gets alone.

Requests of mixed modes, lengths, temperatures and seeds, part of them streamed, some clients
hanging up.  With `--rate` they arrive at random (Poisson) whatever the server does (open loop);
with `--clients` so many ask again as soon as they are answered (closed loop).  Every output is
compared, byte for byte, with that of the same request alone.  At the end the gauges must be back
at 0; the server's memory is told at ten points on the way.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from base64 import b64encode
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.client import Reply, ask, get
from bench.decode import load_prompts
from bench.report import machine, write_json
from bench.served import resident_bytes, served

DISTINCT = 96
"""Requests that differ; longer runs repeat them, so that each need be asked alone only once."""


def request(index: int, longest: int) -> dict[str, Any]:
    """The index-th of the distinct requests: all is drawn from the index."""
    draw = random.Random(index)
    prompts = load_prompts(draw.choice(("code", "prose")))
    prompt = draw.choice(prompts)[: draw.choice((1, 16, 100, 256))]
    mode = draw.choice(("base", "speculative", "auto"))
    return {
        "prompt_bytes": b64encode(prompt).decode(),
        "max_tokens": draw.randint(1, longest),
        "temperature": draw.choice((0.0, 0.7, 1.0)),
        "top_p": draw.choice((1.0, 0.95)),
        "seed": draw.getrandbits(62),
        "ignore_eos": True,
        "mode": mode,
        **({"draft_length": draw.randint(1, 8)} if mode == "speculative" else {}),
        "stream": draw.random() < 0.5,
    }


@dataclass
class Run:
    """What one level of load gave."""

    replies: list[tuple[int, Reply]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    pid: int | None = None
    each: int = 1
    """Memory is looked at after so many requests."""
    resident_mib: list[int] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.replies) + sum(self.errors.values())

    def look(self) -> None:
        if self.pid and self.requests % self.each == 0:
            self.resident_mib.append(round(resident_bytes(self.pid) / 2**20))


async def _one(url: str, run: Run, index: int, longest: int, drop: bool) -> None:
    asked = request(index % DISTINCT, longest)
    try:
        reply = await ask(url, asked, drop_after=2 if drop and asked["stream"] else None)
    except (OSError, asyncio.IncompleteReadError) as error:
        run.errors[f"{type(error).__name__}: {error}"] += 1
    else:
        if reply.status == 200:
            run.replies.append((index % DISTINCT, reply))
        else:
            run.errors[str(reply.status)] += 1
    run.look()


async def closed_loop(
    run: Run, url: str, clients: int, requests: int, longest: int, drop_share: float, seed: int
) -> None:
    draw = random.Random(seed)
    numbers = iter(range(requests))

    async def client() -> None:
        for index in numbers:
            await _one(url, run, index, longest, draw.random() < drop_share)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    run.seconds = time.perf_counter() - began


async def open_loop(
    run: Run, url: str, rate: float, requests: int, longest: int, drop_share: float, seed: int
) -> None:
    draw = random.Random(seed)
    began = due = time.perf_counter()
    tasks = []
    for index in range(requests):
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        dropped = draw.random() < drop_share
        tasks.append(asyncio.create_task(_one(url, run, index, longest, dropped)))
    await asyncio.gather(*tasks)
    run.seconds = time.perf_counter() - began


def percentiles(values: list[float]) -> list[float]:
    """p50, p95 and p99."""
    if not values:
        return []
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, int(len(ordered) * p))] for p in (0.5, 0.95, 0.99)]


def figures(run: Run) -> dict[str, object]:
    first = [r.arrivals[0][0] for _, r in run.replies if r.answer and len(r.arrivals) > 1]
    per_byte: list[float] = []
    for _, reply in run.replies:
        for (before, _), (now, size) in zip(reply.arrivals, reply.arrivals[1:], strict=False):
            per_byte += [(now - before) / size] * size
    emitted = sum(len(reply.output) for _, reply in run.replies)
    return {
        "requests": run.requests,
        "answered": sum(not reply.dropped for _, reply in run.replies),
        "hung_up": sum(reply.dropped for _, reply in run.replies),
        "errors": dict(run.errors),
        "seconds": round(run.seconds, 2),
        "bytes_per_second": round(emitted / run.seconds, 1),
        "first_byte_ms": [round(x * 1e3, 1) for x in percentiles(first)],
        "per_byte_ms": [round(x * 1e3, 2) for x in percentiles(per_byte)],
    }


def differing(run: Run, alone: dict[int, bytes]) -> int:
    """Outputs that are not what the request gets alone, or the beginning of it if dropped."""
    return sum(
        not alone[index].startswith(reply.output) if reply.dropped else alone[index] != reply.output
        for index, reply in run.replies
    )


async def gauges(url: str) -> dict[str, float]:
    text = (await get(url, "/metrics")).decode()
    names = ("specdec_num_requests_running{", "specdec_num_requests_waiting{")
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(names))
    return {name: float(value) for name, value in lines}


async def settled(url: str) -> bool:
    """Whether the gauges are back at 0 within some seconds."""
    for _ in range(50):
        if not any((await gauges(url)).values()):
            return True
        await asyncio.sleep(0.1)
    return False


async def measure(url: str, pid: int | None, options: argparse.Namespace) -> dict[str, Any]:
    alone: dict[int, bytes] = {}
    for index in range(min(DISTINCT, options.requests)):
        alone[index] = (await ask(url, request(index, options.tokens))).output
    levels: list[dict[str, Any]] = []
    plans = [("clients", n) for n in options.clients] + [("rate", r) for r in options.rate]
    for seed, (kind, level) in enumerate(plans):
        loop = closed_loop if kind == "clients" else open_loop
        run = Run(pid=pid, each=max(1, options.requests // 10))
        await loop(run, url, level, options.requests, options.tokens, options.drop, seed)
        record = {
            kind: level,
            **figures(run),
            "differing": differing(run, alone),
            "slots_free_again": await settled(url),
            "resident_mib": run.resident_mib,
        }
        print(json.dumps(record), flush=True)
        levels.append(record)
    return {"levels": levels}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Flags after -- go to the server that is started.",
    )
    parser.add_argument("--url", help="a running server; without it one is started")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--rate", type=float, nargs="*", default=[], help="requests per second")
    parser.add_argument("--requests", type=int, default=192, help="for each level")
    parser.add_argument("--tokens", type=int, default=128, help="bytes of the longest output")
    parser.add_argument("--drop", type=float, default=0.1, help="share of streams hung up on")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    own, _, flags = _split(arguments)
    options = parser.parse_args(own)
    server = nullcontext((options.url, None)) if options.url else served(options.checkpoint, *flags)
    with server as (url, pid):
        record = asyncio.run(measure(url, pid, options))
        version = json.loads(asyncio.run(get(url, "/version")))
    record = {**machine(torch.device("cpu")), "server": version, "flags": flags, **record}
    if options.json:
        write_json(options.json, record)
    lost = [level for level in record["levels"] if level["differing"] or level["errors"]]
    stuck = [level for level in record["levels"] if not level["slots_free_again"]]
    if stuck or (lost and version["exactness"] == "exact"):
        print(
            f"error: {len(lost)} levels with other bytes or errors, {len(stuck)} with slots taken",
            file=sys.stderr,
        )
        return 1
    return 0


def _split(arguments: list[str]) -> tuple[list[str], bool, list[str]]:
    """What stands before and behind --."""
    if "--" not in arguments:
        return arguments, False, []
    at = arguments.index("--")
    return arguments[:at], True, arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
