"""`python -m bench.row_invariance`: which kernels give a row the same bits in any company.

For each linear shape and kernel, and for attention, every row is computed among others in passes
of many sizes and compared bit for bit with a pass of 64 rows.  Prints the pass sizes that differ;
`specdec.packed` and `specdec.attention` hold the cures, DECISIONS.md what was found.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.report import machine, quartiles

SIZES: tuple[int, ...] = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    12,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    80,
)
SIZES += (96, 128, 160, 192, 256)
SHAPES = (
    (256, 512),
    (256, 256),
    (256, 1408),
    (704, 256),
    (512, 1024),
    (512, 512),
    (512, 2816),
    (1408, 512),
)
"""(in, out) of the linears of the shipped model and of one 512 wide."""

HEADS = ((4, 1, 64), (2, 2, 64), (8, 1, 64), (8, 1, 32))
"""(key-value heads, query heads for each, width)."""


def linears(weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    kernels: dict[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: F.linear(x, weight)}
    if weight.device.type == "cpu" and weight.dtype != torch.float64:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
        product = torch.ops.mkldnn._linear_pointwise
        kernels["prepacked"] = lambda x: product(x, packed, None, "none", [], "")
    return kernels


def differing_sizes(kernel: Callable[[Tensor], Tensor], x: Tensor) -> dict[int, int]:
    """Pass size → outputs that differ from those of passes of 64 rows."""
    reference = torch.cat([kernel(part) for part in x.split(64)])
    found = {}
    for size in SIZES:
        whole = len(x) // size * size
        result = torch.cat([kernel(part.clone()) for part in x[:whole].split(size)])
        count = int((result != reference[:whole]).sum())
        if count:
            found[size] = count
    return found


def attention_variants(
    dtype: torch.dtype, heads: tuple[int, int, int], row_tile: int, place_tile: int, length: int
) -> dict[int, int]:
    """Span width → rows that differ from those of spans of 64.

    Rows are padded to a multiple of `row_tile`, places to one of `place_tile`.
    """
    kv_heads, groups, d = heads
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    keys = random(kv_heads, length + 1024, d)
    values = random(kv_heads, length + 1024, d)
    queries = random(kv_heads, length, groups, d)

    def span(begin: int, width: int) -> Tensor:
        rows = -(-width // row_tile) * row_tile
        places = -(-(begin + width) // place_tile) * place_tile
        query = F.pad(queries[:, begin : begin + width], (0, 0, 0, 0, 0, rows - width))
        ahead = torch.arange(places) > torch.arange(begin, begin + rows)[:, None]
        mask = torch.zeros(rows, places, dtype=dtype).masked_fill_(ahead, -torch.inf)
        mixed = F.scaled_dot_product_attention(
            query.reshape(1, kv_heads, rows * groups, d),
            keys[None, :, :places],
            values[None, :, :places],
            attn_mask=mask.repeat_interleave(groups, 0),
        )
        return mixed.view(kv_heads, rows, groups, d)[:, :width]

    def whole(width: int) -> Tensor:
        return torch.cat(
            [span(begin, min(width, length - begin)) for begin in range(0, length, width)], 1
        )

    reference, found = whole(64), {}
    for width in (1, 2, 3, 4, 6, 9, 16, 17, 32, 100, 128):
        count = int((whole(width) != reference).any(-1).any(-1).any(0).sum())
        if count:
            found[width] = count
    return found


def linear_cost(dtype: torch.dtype, repeats: int = 40) -> dict[str, dict[int, float]]:
    """Milliseconds of the linears of eight layers of the shipped shape, interleaved."""
    weights = [(torch.randn(out, inner) * 0.05).to(dtype) for inner, out in SHAPES[:4]] * 8
    kernels = [linears(weight) for weight in weights]
    result: dict[str, dict[int, float]] = {}
    for rows in (1, 2, 6, 8, 16, 64):
        inputs = [torch.randn(rows, weight.shape[1]).to(dtype) for weight in weights]
        samples: dict[str, list[float]] = {name: [] for name in kernels[0]}
        for _ in range(repeats):
            for name, times in samples.items():
                began = time.perf_counter()
                for kernel, x in zip(kernels, inputs, strict=True):
                    kernel[name](x)
                times.append(time.perf_counter() - began)
        for name, times in samples.items():
            result.setdefault(name, {})[rows] = round(quartiles(times)[1] * 1e3, 3)
    return result


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.row_invariance", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--places", type=int, default=1100, help="text length for attention")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    print(json.dumps(machine(device)))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for inner, out in SHAPES:
            weight = (torch.randn(out, inner, dtype=torch.float64) * 0.05).to(device, dtype)
            x = torch.randn(512, inner, dtype=torch.float64).to(device, dtype)
            for name, kernel in linears(weight).items():
                found = differing_sizes(kernel, x)
                print(f"{dtype} linear {inner}→{out} {name}: {found or 'same'}")
    if device.type == "cpu":
        for dtype in (torch.bfloat16, torch.float32):
            for heads in HEADS:
                for tiles in ((1, 1), (4, 1), (4, 64), (1, 512), (4, 512)):
                    found = attention_variants(dtype, heads, *tiles, options.places)
                    print(f"{dtype} attention {heads} tiles {tiles}: {found or 'same'}")
        for dtype in (torch.bfloat16, torch.float32):
            print(f"{dtype} milliseconds by rows: {json.dumps(linear_cost(dtype))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
