"""`python -m bench.bits FILE...`: bits per byte by number format, as decoding runs the model.

What rounding of weights, inputs and cache costs: the first bytes of each file are scored by the
decoder's own passes, windows of the whole context overlapping by half.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from bench.report import machine, write_json
from bench.table import bits as bits_table
from specdec.build import build_decoder
from specdec.checkpoint import load_model
from train.score import bits_per_byte

DTYPES = ("float32", "bfloat16", "int8")
SLOTS = 8


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bits", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument(
        "--bytes", type=int, default=400_000, help="of each file, from its first on"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    model = load_model(options.checkpoint)
    device = torch.device("cpu")
    found: dict[str, dict[str, float]] = {path.name: {} for path in options.files}
    for name in options.dtype:
        dtype = getattr(torch, name)
        decoder = build_decoder(model, None, slots=SLOTS, device=device, dtype=dtype)
        for path in options.files:
            bits = bits_per_byte(decoder, np.fromfile(path, np.uint8), options.bytes)
            found[path.name][name] = round(bits, 4)
            print(f"{path.name} {name} {bits:.4f}", flush=True)
    record = {**machine(device), "bytes": options.bytes, "bits": found}
    print(bits_table(record))
    if options.json:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
