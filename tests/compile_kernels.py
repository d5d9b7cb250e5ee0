"""Compiles every Triton kernel for compute capability 9.0, for which no GPU is needed.

A script: where kernels are interpreted they cannot be compiled in the same process.
"""

import sys
from pathlib import Path
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent.parent))

from specdec import triton_kernels as blocks
from specdec import triton_rule_kernels as rule
from specdec.triton_stack import PLACES, WIDEST_TILE

FLOAT, DOUBLE, INTEGER = "*fp32", "*fp64", "*i64"
LAUNCH = {"num_warps": 4, "num_stages": 3}
TILE = {"ROW_TILE": 16, "BLOCK": 128}
HEADS = {"HEADS": 8, "HEAD": 64}


def compiled(
    kernel: Any, kinds: dict[str, str], constants: dict[str, object], **launch: object
) -> None:
    signature = {n: "constexpr" if n in constants else kinds[n] for n in kernel.arg_names}
    # as at run time: pointers and strides of 16, row counts of anything
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.endswith("_stride")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    built = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=launch)
    ptx = built.asm["ptx"]
    print(
        f"{kernel.__name__}: {built.metadata.shared} bytes shared, {ptx.count('mma.sync')} mma, "
        f"{ptx.count('cp.async.c')} asynchronous copies, local memory: {'.local' in ptx}",
        flush=True,
    )
    assert built.metadata.shared < 100_000
    assert "cubin" in built.asm


def compile_blocks(weight: str) -> None:
    """Of the shapes of a 512-wide model, weights and cache of a type."""
    kinds = dict.fromkeys(("x", "norm", "cos", "sin", "embedding", "seen", "partial"), FLOAT)
    kinds |= dict.fromkeys(("slot", "position", "index", "tokens"), INTEGER)
    kinds |= dict.fromkeys(("weight", "query", "keys", "values", "mixed", "inputs"), weight)
    kinds |= {"arrived": "*i32", "rows": "i32", "slot_stride": "i32", "head_stride": "i32"}
    kinds |= {"eps": "fp32", "scale": "fp32"}
    for first_head in (0, 8):
        compiled(
            blocks.project_kernel,
            kinds,
            {"FIRST_HEAD": first_head, "KV_HEADS": 8, "WIDTH": 512, "PAIRS": 16, **HEADS, **TILE},
            **LAUNCH,
        )
    # of one split there are no partial sums, and nothing arrives
    one_split = dict.fromkeys(("partial", "weights", "arrived"), weight)
    for splits in (1, 9):
        parts = {"weights": FLOAT} if splits > 1 else one_split
        compiled(
            blocks.attend_kernel,
            {**kinds, **parts},
            {"KV_HEADS": 8, "HEAD_TILE": 64, "GROUP_TILE": 16, "PLACES": 64, "SPLIT": 256}
            | {"SPLITS": splits, **HEADS},
            **LAUNCH,
        )
    wide = {"KV_HEADS": 8, "HEADS": 8, "HEAD": 256, "HEAD_TILE": 256, "GROUP_TILE": 16}
    places = min(PLACES, WIDEST_TILE // (256 * (2 if weight == "*bf16" else 4)))
    compiled(
        blocks.attend_kernel,
        {**kinds, **one_split},
        {**wide, "PLACES": places, "SPLIT": 256, "SPLITS": 1},
        **LAUNCH,
    )
    compiled(
        blocks.add_kernel,
        {**kinds, "out": FLOAT},
        {"INPUTS": 1408, "WIDTH": 512, "COLUMNS": 16, **TILE},
        **LAUNCH,
    )
    for cell in (False, True):
        compiled(
            blocks.gate_kernel,
            {**kinds, "out": weight},
            {"WIDTH": 512, "INNER": 1408, "COLUMNS": 16, "CELL": cell, **TILE},
            **LAUNCH,
        )


def compile_inputs(weight: str) -> None:
    floats = dict.fromkeys(("states", "hidden", "embedding", "missing", "x"), FLOAT)
    others = dict.fromkeys(("slots", "start", "tokens", "advance", "each", "place"), INTEGER)
    shape = {"MODEL": 512, "MODEL_TILE": 512, "WIDTH": 384, "WIDTH_TILE": 512}
    for observes in (False, True):
        compiled(
            blocks.inputs_kernel,
            {**floats, **others, "before": weight},
            {**shape, "OBSERVES": observes},
        )


def compile_rule() -> None:
    kinds = {"logits": FLOAT, "table": FLOAT, "first": "i32"}
    kinds |= {"row_stride": "i32", "place_stride": "i32"}
    kinds |= dict.fromkeys(("temperature", "top_p", "min_p", "bias"), DOUBLE)
    penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
    kinds |= dict.fromkeys(penalties, DOUBLE)
    constants: dict[str, object] = {"VOCABULARY": 256, "FOLLOWING": False}
    others = dict.fromkeys(set(rule.choose_kernel.arg_names) - {*kinds, *constants}, INTEGER)
    for following in (False, True):
        constants["FOLLOWING"] = following
        compiled(rule.choose_kernel, {**kinds, **others}, constants, enable_fp_fusion=False)
    begun = dict.fromkeys(rule.begin_kernel.arg_names, INTEGER)
    compiled(rule.begin_kernel, {**begun, "scratch": "i32"}, {})
    constants = {"IDLE": -1, "WIDEST": 32, "VOCABULARY": 256}
    others = dict.fromkeys(set(rule.settle_kernel.arg_names) - {"width", *constants}, INTEGER)
    compiled(rule.settle_kernel, {**others, "width": "i32"}, constants, num_warps=1)


def main() -> None:
    for weight in ("*bf16", FLOAT):
        compile_blocks(weight)
        compile_inputs(weight)
    floats = dict.fromkeys(("x", "norm", "weight", "hidden", "logits"), FLOAT)
    compiled(
        blocks.head_kernel,
        {**floats, "rows": "i32", "eps": "fp32"},
        {"WIDTH": 512, "VOCABULARY": 256, "COLUMNS": 16, **TILE},
        **LAUNCH,
    )
    compile_rule()


if __name__ == "__main__":
    main()
