"""`python -m bench.limit`: how far decoding is from what streaming the weights allows.

A pass over one row has to read every weight once.  The bandwidth is that of a sum over a buffer as
large as the weights, read again and again as decoding reads them, by as many threads; beside it the
cost of a pass over 1, 4, 8, 16 and 32 rows, each in a slot of its own and all in one slot, and of a
whole plain round.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.report import machine, quartiles, write_json
from bench.served import add_checkpoint, asked_checkpoint
from specdec.build import build_decoder
from specdec.checkpoint import load_model
from specdec.decoder import LONGEST_CHUNK, Decoder, Job
from specdec.native_stack import NativeModel
from specdec.sampling import SamplingParams

ROWS = (1, 4, 8, 16, 32)
PLACE = 200
CALLS, ROUNDS = 30, 10
"""Calls of the decoder that are timed, and plain rounds in each, as a server runs them."""


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median; the first few do not count."""
    seconds = []
    for turn in range(repeats + 5):
        began = time.perf_counter()
        work()
        if turn >= 5:
            seconds.append(time.perf_counter() - began)
    return quartiles(seconds)[1] * 1e3


def plain_round(decoder: Decoder[Any]) -> float:
    """Milliseconds of a round from `PLACE` on, in calls of several: median over calls."""
    decoder.open(0, Job(b"x" * PLACE, CALLS * ROUNDS, SamplingParams(), 1))
    while size := min(LONGEST_CHUNK, decoder.to_prefill(0)):
        decoder.step({}, {0: size})
    each = []
    for _ in range(CALLS):
        began = time.perf_counter()
        result = decoder.step({0: 0}, rounds=ROUNDS)[0]
        each.append((time.perf_counter() - began) / len(result.output))
    return quartiles(each)[1] * 1e3


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.limit", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--dtype", choices=("bfloat16", "int8", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with asked_checkpoint(options) as checkpoint:
        model = load_model(checkpoint)
    weights = [p for name, p in model.named_parameters() if "embedding" not in name]
    dtype = getattr(torch, options.dtype)
    size = sum(p.numel() for p in weights) * dtype.itemsize
    buffer = torch.ones(size // 4)
    stream = milliseconds(buffer.sum, options.repeats * 4)
    device = torch.device("cpu")
    decoder = build_decoder(model, None, slots=max(ROWS), device=device, dtype=dtype, context=512)
    if isinstance(decoder.model, NativeModel):
        torch.set_num_threads(1)
    passes: dict[int, tuple[float, float]] = {}
    for rows in ROWS:
        tokens = torch.full((rows,), 101)
        apart = torch.arange(rows), torch.full((rows,), PLACE)
        together = torch.zeros(rows, dtype=torch.int64), PLACE + torch.arange(rows)
        figures = []
        for (slot, place), group in ((apart, (rows, 1)), (together, (1, rows))):
            figures.append(
                milliseconds(
                    partial(decoder.model.forward, tokens, slot, place, place, (group,)),
                    options.repeats,
                )
            )
        passes[rows] = figures[0], figures[1]
    plain = plain_round(decoder)
    record = {
        **machine(device),
        "dtype": options.dtype,
        "weights_mb": round(size / 1e6, 2),
        "stream_ms": round(stream, 3),
        "stream_gb_per_second": round(size / stream / 1e6, 1),
        "plain_round_ms": round(plain, 3),
        "share_of_limit": round(stream / plain, 3),
        "passes": [
            {"rows": rows, "apart_ms": round(apart, 3), "together_ms": round(together, 3)}
            for rows, (apart, together) in passes.items()
        ],
    }
    print(
        f"{size / 1e6:.1f} MB of weights stream in {stream:.3f} ms "
        f"({size / stream / 1e6:.1f} GB/s); a plain round takes {plain:.3f} ms: "
        f"{stream / plain:.0%} of the limit"
    )
    print("| rows | a slot each, ms | one slot, ms | against one row |\n|---|---|---|---|")
    for rows, (apart_ms, together_ms) in passes.items():
        print(f"| {rows} | {apart_ms:.2f} | {together_ms:.2f} | {apart_ms / passes[1][0]:.2f} |")
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
