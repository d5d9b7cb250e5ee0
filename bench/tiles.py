"""`python -m bench.tiles`: what a round takes with other tiles, warps and stages of the kernels.

Each setting of `specdec.triton_stack` is changed by itself from what it is there.  Plain rounds as
captured graphs, one behind the other, by the device's clock, 200 bytes behind each row; medians.
Whether a row then has the same bits in any company is asked too: a setting may change its bits, but
not by what shares the pass.  Needs a GPU, torch and Triton.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.report import machine, quartiles, write_json
from bench.served import add_checkpoint, asked_checkpoint
from specdec.build import build_decoder
from specdec.checkpoint import load_model
from specdec.decoder import LONGEST_CHUNK, Decoder, Job
from specdec.graph_round import GraphRounds
from specdec.invariance import measure_invariance
from specdec.sampling import SamplingParams
from specdec.static_round import Shape

SETTINGS: dict[str, tuple[int, ...]] = {
    "COLUMNS": (16, 32, 64),
    "PAIRS": (16, 32),
    "BLOCK": (64, 128, 256),
    "PLACES": (32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4, 6),
}
"""What is tried; the last two are how all kernels of a pass are launched."""

BEHIND, REPLAYS, TURNS = 200, 30, 7


@contextmanager
def setting(name: str, value: int) -> Iterator[None]:
    """Kernels that are launched within have it."""
    from specdec import triton_stack

    names = triton_stack.LAUNCH if name in triton_stack.LAUNCH else vars(triton_stack)
    before = names[name]
    names[name] = value
    try:
        yield
    finally:
        names[name] = before


def default(name: str) -> int:
    from specdec import triton_stack

    return int({**vars(triton_stack), **triton_stack.LAUNCH}[name])


def round_seconds(
    decoder: Decoder[Any], rows: int, timed: Callable[[Callable[[], object]], float]
) -> float:
    """Of a plain round of so many rows; `timed` tells how long a call takes the device."""
    room = REPLAYS * (TURNS + 2)
    rounds = decoder.run_round
    assert isinstance(rounds, GraphRounds)
    for slot in range(rows):
        job = Job(b"\n" * BEHIND, room, SamplingParams(temperature=1.0), slot)
        decoder.open(slot, job)
        while size := min(LONGEST_CHUNK, decoder.to_prefill(slot)):
            decoder.step({}, {slot: size})
    work = rounds._prepared(Shape(rows, 0, False))
    rounds._inputs[rows].send(list(range(rows)), [0] * rows, [False] * rows)

    def replays() -> None:
        for _ in range(REPLAYS):
            work()

    replays()
    seconds = [timed(replays) / REPLAYS for _ in range(TURNS)]
    for slot in range(rows):
        decoder.close(slot)
    return quartiles(seconds)[1]


def on_device(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def variants() -> Iterator[tuple[str, int]]:
    """What is there already comes first, by whatever name."""
    first, *_ = SETTINGS
    yield first, default(first)
    for name, values in SETTINGS.items():
        yield from ((name, value) for value in values if value != default(name))


def measure(
    build: Callable[[], Decoder[Any]],
    batch: list[int],
    timed: Callable[[Callable[[], object]], float],
) -> Iterator[dict[str, Any]]:
    """Of each variant what a round takes by rows, in microseconds, or why it can't be had."""
    for name, value in variants():
        row: dict[str, Any] = {"setting": name, "value": value, "default": value == default(name)}
        with setting(name, value):
            try:
                decoder = build()
                row["round_us"] = {
                    str(rows): round(1e6 * round_seconds(decoder, rows, timed), 1) for rows in batch
                }
                row["exact"] = measure_invariance(decoder.model).exact
            except Exception as error:  # one may ask for more than the device has
                row["error"] = f"{type(error).__name__}: {error}"[:200]
        yield row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tiles", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: this torch finds no CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    with asked_checkpoint(options) as checkpoint:
        model = load_model(checkpoint)

        def build() -> Decoder[Any]:
            return build_decoder(
                model,
                None,
                slots=max(options.batch),
                context=BEHIND + REPLAYS * (TURNS + 2),
                device=device,
                dtype=torch.bfloat16,
                kernels="cuda",
            )

        record: dict[str, Any] = {**machine(device), "tiles": []}
        for row in measure(build, options.batch, on_device):
            record["tiles"].append(row)
            print(row, flush=True)
            if options.json:  # the run may be cut short
                write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
