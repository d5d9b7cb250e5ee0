"""Which type the matrices of training are multiplied in, measured where nobody said.

Processors differ: with AMX bfloat16 is several times as fast as float32, with AVX512-BF16 alone it
can be half as fast.
"""

import time

import torch

ROWS, INNER, OUTER = 2048, 256, 1024


def matrix_type(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 or float32; "auto" is bfloat16 on an accelerator, on CPU whichever is faster."""
    if name != "auto":
        named: torch.dtype = getattr(torch, name)
        return named
    if device.type != "cpu":
        return torch.bfloat16
    return min((torch.float32, torch.bfloat16), key=_seconds)


def _seconds(dtype: torch.dtype) -> float:
    """Best of several, so that a busy machine does not decide."""
    x, weight = torch.randn(ROWS, INNER).to(dtype), torch.randn(INNER, OUTER).to(dtype)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        torch.matmul(x, weight)
        taken.append(time.perf_counter() - began)
    return min(taken)
