"""The noise of `specdec.noise` by the compiled core: the same bits, in a fraction of the time.

The core makes the uniforms; their logarithms are torch's here as there.
"""

import torch
from torch import Tensor

from specdec.config import VOCAB_SIZE
from specdec.native_library import native_library
from specdec.noise import gumbel_of


def native_gumbel_ahead(seed: Tensor, start: Tensor, count: int) -> Tensor:
    """`specdec.noise.gumbel_ahead` of seeds and starts on the CPU."""
    seed, start = seed.contiguous(), start.contiguous()
    rows = len(seed)
    uniform = torch.empty(rows, count, VOCAB_SIZE, dtype=torch.float64)
    native_library().specdec_uniforms(
        rows, count, seed.data_ptr(), start.data_ptr(), uniform.data_ptr()
    )
    return gumbel_of(uniform)
