"""The parallel prophet, as a trainable module: one pass over the past, then γ very light steps.

One transformer block runs over places t = 0, 1, … of the text and sees, at each, the byte and the
model's state before it:

    u_t = W·h_{t-1} + E(x_t)            h_{-1} is a learned vector
    y   = block(u), causal              y_m has seen h_0..h_{m-1} and x_0..x_m

From a start m a recurrent cell then goes byte by byte.  z_0 = y_m predicts x_{m+1}, and

    z_k = cell(z_{k-1}, x_{m+k})        predicts x_{m+k+1}       (`specdec.cell`)

each through one head and a table of what follows the byte before it.  While decoding the bytes
behind x_m are the prophet's own drafts (`specdec.parallel_drafter`); a test compares the two.

Against the autoregressive kind: the whole past instead of the last states, a block once a round
instead of once a byte.  Sources: attention to the past as in EAGLE (arXiv 2401.15077), the
recurrent head as in Hydra and ReDrafter (arXiv 2402.05109, 2403.09919).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.cell import Cell
from specdec.config import VOCAB_SIZE, ProphetConfig
from specdec.layers import Stack, initialize, wide
from specdec.prophet import Prophet, require_room


class ParallelProphet(Prophet):
    """B rows, T places, M starts, γ drafts, D width of the model, P width of the prophet."""

    def __init__(self, config: ProphetConfig, context: int) -> None:
        super().__init__()
        self.config = config
        width = config.block.hidden_size
        self.embedding = nn.Embedding(VOCAB_SIZE, width)
        self.projection = nn.Linear(config.model_hidden_size, width, bias=False)
        self.missing = nn.Parameter(torch.zeros(width))
        self.stack = Stack(config.block, 1, context)
        self.cell = Cell(width, config.block.rms_norm_eps)
        self.head = nn.Linear(width, VOCAB_SIZE, bias=False)
        self.transition = nn.Embedding(VOCAB_SIZE, VOCAB_SIZE)
        initialize(self, 1)
        self.cell.initialize()
        nn.init.zeros_(self.transition.weight)

    def inputs(self, previous: Tensor, present: Tensor, tokens: Tensor) -> Tensor:
        """u [..., P] of states before [..., D] and bytes [...]; `present` [...] is False at x_0."""
        projected = self.projection(previous)
        known = torch.where(present[..., None], projected, self.missing.to(projected.dtype))
        embedded: Tensor = self.embedding(tokens)
        return known + embedded

    def logits(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Scores [..., 256] of the byte after `tokens` [...], from z [..., P] that has seen it."""
        kind = wide(states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            following: Tensor = self.transition(tokens)
            return F.linear(states.to(kind), self.head.weight.to(kind)) + following.to(kind)

    def at_starts(self, hidden: Tensor, tokens: Tensor, starts: Tensor, gamma: int) -> Tensor:
        require_room(tokens, starts, gamma)
        previous = F.pad(hidden[:, :-1], (0, 0, 1, 0))
        present = torch.arange(tokens.shape[1], device=tokens.device) > 0
        state = self.stack(self.inputs(previous, present.expand_as(tokens), tokens))[:, starts]
        bytes_at = tokens[:, starts[:, None] + torch.arange(gamma, device=tokens.device)]
        states = [state]
        for k in range(1, gamma):
            states.append(self.cell(states[-1], bytes_at[..., k]))
        return self.logits(torch.stack(states, 2), bytes_at)
