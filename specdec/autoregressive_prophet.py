"""The autoregressive prophet, as a trainable module, and the alignment that it is trained with.

Its input for a start m is

    [W·h_{m-s}, …, W·h_{m-1}, E(x_m), E(x_{m+1}), …, E(x_{m+γ-1})]      positions 0..s+γ-1

and its outputs at positions s..s+γ-1 predict x_{m+1}..x_{m+γ}.  h_i is the model's hidden state
after it has consumed x_i; where i < 0 (a prompt shorter than s) a learned vector stands in.
While decoding the bytes after x_m are the prophet's own drafts, at the same positions:
`specdec.autoregressive_drafter.AutoregressiveDrafter` is that loop, and a test compares the two.

Source: the prophet transformer of lucidrains/speculative-decoding, without its defects.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.config import LONGEST_DRAFT, VOCAB_SIZE, ProphetConfig
from specdec.layers import Stack, initialize, wide
from specdec.prophet import Prophet, require_room


class AutoregressiveProphet(Prophet):
    """A small decoder that continues from the model's last hidden states.

    B rows, s leading states, γ drafts, D width of the model, P width of the prophet.
    """

    def __init__(self, config: ProphetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.block.hidden_size
        self.embedding = nn.Embedding(VOCAB_SIZE, width)
        self.projection = nn.Linear(config.model_hidden_size, width, bias=False)
        self.missing = nn.Parameter(torch.zeros(config.leading_states, width))
        self.stack = Stack(
            config.block, config.num_hidden_layers, config.leading_states + LONGEST_DRAFT
        )
        self.head = nn.Linear(width, VOCAB_SIZE, bias=False)
        initialize(self, config.num_hidden_layers)

    def leading(self, states: Tensor, present: Tensor) -> Tensor:
        """Opening vectors [B, s, P] of states [B, s, D]; `present` [B, s] is False before x_0."""
        projected = self.projection(states)
        missing = self.missing.to(projected.dtype)
        return torch.where(present[..., None], projected, missing)

    def forward(self, states: Tensor, present: Tensor, tokens: Tensor) -> Tensor:
        """Scores [B, γ, 256] of the bytes after tokens [B, γ], x_m and the γ-1 bytes after it."""
        lead = self.leading(states, present)
        hidden = self.stack(torch.cat((lead, self.embedding(tokens).to(lead.dtype)), 1))
        return self.logits(hidden[:, lead.shape[1] :])

    def logits(self, hidden: Tensor) -> Tensor:
        kind = wide(hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(kind), self.head.weight.to(kind))

    def at_starts(self, hidden: Tensor, tokens: Tensor, starts: Tensor, gamma: int) -> Tensor:
        require_room(tokens, starts, gamma)
        batch = len(tokens)
        s = self.config.leading_states
        lead = starts[:, None] + torch.arange(-s, 0, device=tokens.device)
        following = starts[:, None] + torch.arange(gamma, device=tokens.device)
        count = starts.shape[0]
        states = hidden[:, lead.clamp_min(0)].flatten(0, 1)
        present = (lead >= 0).expand(batch, count, s).flatten(0, 1)
        scores: Tensor = self(states, present, tokens[:, following].flatten(0, 1))
        return scores.view(batch, count, gamma, VOCAB_SIZE)
