"""`python -m bench.event_loop`: what HTTP takes from the engine.

So many streams decode together in base mode, over HTTP and, for comparison, in an engine that
nobody asks over a network; rounds per second of both, and the processor time that the server's
event loop and this client take beside the engine.  On two cores the client competes with the
server: its share is told, so that it is not blamed on the server.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from bench.client import ask
from bench.report import machine, write_json
from bench.served import served, thread_seconds

WARM_BYTES = 32


async def over_http(url: str, pid: int, streams: int, tokens: int) -> dict[str, float]:
    request = {"prompt": "x", "max_tokens": tokens, "mode": "base", "ignore_eos": True}
    seeded = [{**request, "seed": seed, "stream": True} for seed in range(streams)]
    before, own, began = thread_seconds(pid), time.process_time(), time.perf_counter()
    await asyncio.gather(*(ask(url, asked) for asked in seeded))
    seconds = time.perf_counter() - began
    spent = {name: now - before.get(name, 0.0) for name, now in thread_seconds(pid).items()}
    loop = next(value for name, value in spent.items() if name.endswith(f"/{pid}"))
    return {
        "rounds_per_second": tokens / seconds,
        "event_loop_cpu": loop / seconds,
        "client_cpu": (time.process_time() - own) / seconds,
    }


def in_engine(checkpoint: str, streams: int, tokens: int) -> float:
    """Rounds per second of an engine in this process, with nobody to send anything to."""
    from server.loading import load_engine
    from server.messages import Event, Mode, Progress, Submission
    from server.settings import Settings
    from specdec.sampling import SamplingParams

    settings = Settings(checkpoint=Path(checkpoint), max_batch=streams)
    engines = []
    loader = threading.Thread(target=lambda: engines.append(load_engine(settings)))
    loader.start()
    loader.join()
    (engine,) = engines
    done = threading.Semaphore(0)

    def deliver(event: Event) -> None:
        if not isinstance(event, Progress):
            done.release()

    seconds = []
    for count in (WARM_BYTES, tokens):
        began = time.perf_counter()
        for seed in range(streams):
            name = f"{count}-{seed}"
            params = SamplingParams()
            submission = Submission(name, b"x", count, params, seed, Mode.BASE, 0, None)
            engine.submit(submission, deliver)
        for _ in range(streams):
            done.acquire()
        seconds.append(time.perf_counter() - began)
    engine.stop()
    return tokens / seconds[-1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.event_loop", description=__doc__)
    parser.add_argument("--checkpoint", default="checkpoints/default")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=400, help="bytes of each stream")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--engine-alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.engine_alone:
        print(in_engine(options.checkpoint, options.engine_alone, options.tokens))
        return 0
    record: dict[str, object] = {**machine(torch.device("cpu")), "tokens": options.tokens}
    for streams in options.streams:
        alone, served_ = [], []
        own = ["--checkpoint", options.checkpoint, "--tokens", str(options.tokens)]
        command = [sys.executable, "-m", "bench.event_loop", *own, "--engine-alone", str(streams)]
        for _ in range(options.turns):
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            alone.append(float(printed))
            with served(Path(options.checkpoint), "--max-batch", str(streams)) as (url, pid):
                asyncio.run(over_http(url, pid, streams, WARM_BYTES))
                served_.append(asyncio.run(over_http(url, pid, streams, options.tokens)))
        middle = sorted(served_, key=lambda item: item["rounds_per_second"])[len(served_) // 2]
        engine = sorted(alone)[len(alone) // 2]
        row = {
            "engine_rounds_per_second": round(engine, 1),
            "http_rounds_per_second": round(middle["rounds_per_second"], 1),
            "lost": round(1 - middle["rounds_per_second"] / engine, 3),
            "event_loop_cpu": round(middle["event_loop_cpu"], 3),
            "client_cpu": round(middle["client_cpu"], 3),
        }
        print(json.dumps({"streams": streams, **row}), flush=True)
        record[f"{streams} streams"] = row
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
