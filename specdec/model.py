"""The byte model: a Llama decoder over 256 bytes, as a trainable module.

Knows whole sequences (training, scoring, the slow oracle).  Decoding with a cache is
`specdec.packed.PackedModel`, built from this module; files are `specdec.checkpoint`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.config import VOCAB_SIZE, ModelConfig
from specdec.layers import Stack, initialize, wide


class ByteLlama(nn.Module):
    """Embeds bytes, runs the blocks, scores the next byte.

    With `tie_word_embeddings` the head is the embedding matrix.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCAB_SIZE, config.hidden_size)
        self.stack = Stack(config.block, config.num_hidden_layers, config.max_position_embeddings)
        if not config.tie_word_embeddings:
            self.head = nn.Linear(config.hidden_size, VOCAB_SIZE, bias=False)
        initialize(self, config.num_hidden_layers)

    @property
    def head_weight(self) -> Tensor:
        """[256, D], the embedding's own where they are tied."""
        return self.embedding.weight if self.config.tie_word_embeddings else self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states [B, T, D] after the final norm for tokens [B, T] (int64, 0..255)."""
        hidden: Tensor = self.stack(self.embedding(tokens))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., 256] of the next byte, in at least float32 (bfloat16 would tie)."""
        kind = wide(hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(kind), self.head_weight.to(kind))
