"""`python -m bench.throughput`: bytes per second over HTTP, beside transformers' `generate`.

Plain decoding of a model of random weights: so many clients at once send a prompt of 120 bytes and
get 256 bytes each.  transformers runs the same prompts as one batch, in this process, between the
server's turns; medians over the turns.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path

import torch

from bench.client import ask
from bench.report import machine, quartiles, write_json
from bench.runners import Transformers
from bench.served import random_checkpoint, served

PROMPT_BYTES = 120
NEW_BYTES = 256


def prompts(count: int) -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(1, 256, (count, PROMPT_BYTES), generator=generator)
    return [bytes(row) for row in draw.tolist()]


async def over_http(url: str, clients: int) -> float:
    """Bytes per second of all clients together, from the first request to the last answer."""
    requests = [
        {
            "prompt_bytes": b64encode(prompt).decode(),
            "max_tokens": NEW_BYTES,
            "temperature": 0,
            "mode": "base",
            "ignore_eos": True,
        }
        for prompt in prompts(clients)
    ]
    began = time.perf_counter()
    replies = await asyncio.gather(*(ask(url, request) for request in requests))
    seconds = time.perf_counter() - began
    assert all(len(reply.output) == NEW_BYTES for reply in replies)
    return clients * NEW_BYTES / seconds


def in_transformers(peer: Transformers, batch: int) -> float:
    """Bytes per second of the same prompts as one batch."""
    began = time.perf_counter()
    outputs = peer.generate(prompts(batch), NEW_BYTES)
    seconds = time.perf_counter() - began
    assert all(len(output) == NEW_BYTES for output in outputs)
    return batch * NEW_BYTES / seconds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    record: dict[str, object] = {**machine(torch.device("cpu")), "dtype": options.dtype}
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = random_checkpoint(Path(directory), options.width, options.depth)
        flags = ("--max-batch", str(max(options.clients)), "--dtype", options.dtype)
        peer = Transformers(checkpoint, getattr(torch, options.dtype))
        with served(checkpoint, *flags, "--device", "cpu") as (url, _):
            asyncio.run(over_http(url, 2))
            for clients in options.clients:
                ours, theirs = [], []
                for _ in range(options.turns):
                    ours.append(asyncio.run(over_http(url, clients)))
                    theirs.append(in_transformers(peer, clients))
                row = {
                    "server_bytes_per_second": round(quartiles(ours)[1], 1),
                    "transformers_bytes_per_second": round(quartiles(theirs)[1], 1),
                }
                print(json.dumps({"clients": clients, **row}), flush=True)
                record[f"{clients} clients"] = row
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
