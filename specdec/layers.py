"""The parts of a Llama block, as modules with trainable weights.

B rows, T positions, D width, H query heads, K key-value heads, d head width, F feed-forward width.
Whole sequences only: decoding through a cache lives in `specdec.packed`, with the same arithmetic
on packed weights.  Follows the block of Llama (Touvron et al. 2023) with the weight layout of
Hugging Face, but projections that read the same input are one matrix: qkv and gate_up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.config import BlockConfig


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums, norms and logits are kept in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def rotary_table(
    positions: int, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, d] of rotary positions (Su et al. 2021), halves split as in Llama.

    The second half of sin is that of the first; the sign of the rotation is in `rotate`.
    """
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * inverse
    return angle.cos().repeat(1, 2).to(dtype), angle.sin().repeat(1, 2).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [..., d] by the angles of its positions, in the type of the tables."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in at least float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        kind = wide(x.dtype)
        return F.rms_norm(x.to(kind), self.weight.shape, self.weight.to(kind), self.eps)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of [B, H, T, d], in the type that is fastest for it on the device."""
    if query.device.type != "cpu":
        query, key = query.to(value.dtype), key.to(value.dtype)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # the fused CPU kernel is twice as fast in float32 as in bfloat16, backward included
    query, key, value = (x.to(wide(x.dtype)) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class Block(nn.Module):
    """Attention and SwiGLU feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        width, d = config.hidden_size, config.head_dim
        self.attention_norm = RMSNorm(width, config.rms_norm_eps)
        self.qkv = nn.Linear(width, config.qkv_heads * d, bias=False)
        self.output = nn.Linear(config.num_attention_heads * d, width, bias=False)
        self.feed_forward_norm = RMSNorm(width, config.rms_norm_eps)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention over x [B, T, D] at positions 0..T-1."""
        config = self.config
        heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv = self.qkv(x).unflatten(-1, (-1, d)).transpose(1, 2)
        turned = rotate(qkv[:, : heads + kv_heads], cos, sin)
        query, key, value = turned[:, :heads], turned[:, heads:], qkv[:, heads + kv_heads :]
        if config.query_groups > 1:
            key = key.repeat_interleave(config.query_groups, 1)
            value = value.repeat_interleave(config.query_groups, 1)
        mixed = _causal(query, key, value)
        projected: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return projected

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        projected: Tensor = self.down(F.silu(gate) * up)
        return projected

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Stack(nn.Module):
    """Blocks one after another and the final norm: [B, T, D] → [B, T, D]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: BlockConfig, depth: int, positions: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotary_table(positions, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        for block in self.blocks:
            x = block(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed


def initialize(module: nn.Module, depth: int) -> None:
    """Normal weights: linears of deviation 0.02, what writes to the stream 1/√(2·depth) of that.

    Queries and keys begin three times and embeddings ten times as large: attention that is nearly
    flat over a window finds the preceding bytes some hundred steps later.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.2)
    for block in module.modules():
        if isinstance(block, Block):
            config = block.config
            turned = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
            with torch.no_grad():
                block.qkv.weight[:turned] *= 3
                block.output.weight *= (2 * depth) ** -0.5
                block.down.weight *= (2 * depth) ** -0.5
