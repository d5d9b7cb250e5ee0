"""The recurrent cell of a parallel prophet, trainable: a state and a byte give the next state.

    n  = norm(z + E(x))
    z' = norm(n + down(silu(gate n) · up n))

A feed-forward of a Llama block around a residual, so that what the state knew of the past passes on
unless the cell changes it.  Norms have no weights: what reads them has its own.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from specdec.config import VOCAB_SIZE
from specdec.layers import wide

INNER = 2
"""Width of the cell's feed-forward in widths of its state."""


class Cell(nn.Module):
    """P width of the state."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding = nn.Embedding(VOCAB_SIZE, width)
        self.gate_up = nn.Linear(width, 2 * INNER * width, bias=False)
        self.down = nn.Linear(INNER * width, width, bias=False)

    def forward(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The next state [..., P] of a state [..., P] and bytes [...]."""
        seen = normed(state.to(wide(state.dtype)) + self.embedding(tokens), self.eps)
        gate, up = self.gate_up(seen).chunk(2, -1)
        return normed(seen + self.down(F.silu(gate) * up), self.eps)

    def initialize(self) -> None:
        """A byte weighs half as much as the past; what is added to both begins small."""
        width = self.embedding.embedding_dim
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.gate_up.weight, std=width**-0.5)
        nn.init.normal_(self.down.weight, std=0.5 * (INNER * width) ** -0.5)


def normed(x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=eps)
