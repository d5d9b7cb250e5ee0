"""The model as decoding runs it: packed weights, packed rows, one preallocated cache.

A row's bits must not depend on what shares the pass (`specdec.invariance` measures it).  What that
takes here: linears keep to kernels whose reduction order is fixed for the row counts in use, with
rows padded up to a minimum; attention is `specdec.attention`.

N packed rows, S slots, D width, H query heads, K key-value heads, d head width, C cached places.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.attention import CACHE_TILE, LONGEST_SPAN, Groups, attention_for
from specdec.config import BlockConfig, ModelConfig
from specdec.layers import Block, Stack, rotary_table, rotate, wide
from specdec.model import ByteLlama

Linear = Callable[[Tensor], Tensor]

SLACK = 32
"""Places behind the context that the rows of a wide verify may write to."""


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's prepacked linears serve this device and type."""
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


def least_rows(device: torch.device, dtype: torch.dtype) -> int:
    """Rows that a pass is padded to: prepacked linears take another kernel for a single one.

    Measured on AVX-512; other machines are covered by the check at start, not by this figure.
    """
    return 2 if packs(device, dtype) else 1


def pack_linear(weight: Tensor) -> Linear:
    """x [N, in] → [N, out] in the weight's type, the weight [out, in] packed once."""
    weight = weight.detach().contiguous()
    if not packs(weight.device, weight.dtype):
        return _tiled(weight) if weight.device.type == "cpu" else lambda x: F.linear(x, weight)
    # oneDNN multiplies bfloat16 on some processors only
    half = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    kind = weight.dtype if half else torch.float32
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(kind), 64)
    product = torch.ops.mkldnn._linear_pointwise.default

    def linear(x: Tensor) -> Tensor:
        result: Tensor = product(x.to(kind), packed, None, "none", [], "")
        return result.to(weight.dtype)

    return linear


def _tiled(weight: Tensor) -> Linear:
    """Plain linear over 16 to 64 rows at a time: outside that range sums are ordered otherwise."""

    def linear(x: Tensor) -> Tensor:
        rows = x.shape[0]
        padded = F.pad(x, (0, 0, 0, -rows % 16))
        return torch.cat([F.linear(tile, weight) for tile in padded.split(64)])[:rows]

    return linear


class PackedBlock:
    """One block's weights, ready to run; attention itself is the caller's."""

    def __init__(self, block: Block, device: torch.device, dtype: torch.dtype) -> None:
        config = block.config
        kind = wide(dtype)
        self.head_dim = config.head_dim
        self.turned = config.num_attention_heads + config.num_key_value_heads
        self.dtype = dtype
        self.eps = config.rms_norm_eps
        self.attention_norm = block.attention_norm.weight.detach().to(device, kind)
        self.feed_forward_norm = block.feed_forward_norm.weight.detach().to(device, kind)
        self.qkv = pack_linear(block.qkv.weight.to(device, dtype))
        self.output = pack_linear(block.output.weight.to(device, dtype))
        self.gate_up = pack_linear(block.gate_up.weight.to(device, dtype))
        self.down = pack_linear(block.down.weight.to(device, dtype))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys [N, H+K, d], values [N, K, d]; cos and sin are [N, 1, d]."""
        normed = F.rms_norm(x, self.attention_norm.shape, self.attention_norm, self.eps)
        qkv = self.qkv(normed.to(self.dtype)).unflatten(-1, (-1, self.head_dim))
        turned = rotate(qkv[:, : self.turned], cos, sin).to(self.dtype)
        return turned, qkv[:, self.turned :]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Adds attention's result [N, H·d] and the feed-forward's to the stream x [N, D]."""
        x = x + self.output(mixed)
        normed = F.rms_norm(x, self.feed_forward_norm.shape, self.feed_forward_norm, self.eps)
        gate, up = self.gate_up(normed.to(self.dtype)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def slot_bytes(block: BlockConfig, depth: int, context: int, dtype: torch.dtype) -> int:
    """What `depth` blocks take of cache for a slot of `context` bytes."""
    places = depth * block.num_key_value_heads * _capacity(context + SLACK)
    return 2 * places * block.head_dim * dtype.itemsize


def _capacity(places: int) -> int:
    return -(-places // CACHE_TILE) * CACHE_TILE


def cache_of(
    block: BlockConfig,
    depth: int,
    slots: int,
    places: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Keys or values [layer, S, K, C, d] of C `places`."""
    shape = (depth, slots, block.num_key_value_heads, places, block.head_dim)
    return torch.zeros(shape, device=device, dtype=dtype)


class SlotStack(Protocol):
    """Blocks, final norm and head over the caches of slots, whatever they run on."""

    head: Linear
    keys: Tensor
    values: Tensor

    def forward(
        self, x: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [N, D] and logits [N, 256] of inputs x [N, D]; see `PackedModel`."""

    def remember(self, x: Tensor, slot: Tensor, place: Tensor) -> None:
        """Puts the first block's keys and values of inputs x [N, D] into the cache, no more."""

    def copy(self, source: int, target: int, places: int) -> None:
        """Gives slot `target` the first `places` of the cache of `source`."""


class MakeStack(Protocol):
    def __call__(
        self,
        stack: Stack,
        head: Tensor,
        *,
        slots: int,
        places: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> SlotStack: ...


class PackedStack:
    """Blocks, final norm and head over `slots` caches of at least `places` places each.

    All preallocated: keys and values [layer, S, K, C, d], keys stored rotated.
    """

    def __init__(
        self,
        stack: Stack,
        head: Tensor,
        *,
        slots: int,
        places: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.blocks = [PackedBlock(b, device, dtype) for b in stack.blocks]  # type: ignore[arg-type]
        self.config: BlockConfig = stack.blocks[0].config  # type: ignore[assignment]
        kind = wide(dtype)
        self.norm = stack.norm.weight.detach().to(device, kind)
        self.head = pack_linear(head.to(device, kind))
        self.least_rows = least_rows(device, dtype)
        capacity = _capacity(places)
        self.keys, self.values = (
            cache_of(self.config, len(self.blocks), slots, capacity, device, dtype)
            for _ in range(2)
        )
        self.attention = attention_for(device, self.config, capacity, dtype)
        cos, sin = rotary_table(places, self.config.head_dim, self.config.rope_theta, kind)
        self.cos, self.sin = cos.to(device)[:, None], sin.to(device)[:, None]

    def copy(self, source: int, target: int, places: int) -> None:
        for cache in (self.keys, self.values):
            cache[:, target, :, :places] = cache[:, source, :, :places]

    def remember(self, x: Tensor, slot: Tensor, place: Tensor) -> None:
        turned, value = self.blocks[0].project(x, self.cos[place], self.sin[place])
        self.keys[0][slot, :, place] = turned[:, self.config.num_attention_heads :]
        self.values[0][slot, :, place] = value

    def forward(
        self, x: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        rows = x.shape[0]
        if any(width > LONGEST_SPAN for _, width in groups):
            raise ValueError(f"a span is longer than {LONGEST_SPAN} rows")
        missing = max(0, self.least_rows - rows)
        cos, sin = self.cos[position], self.sin[position]
        if missing:
            x = F.pad(x, (0, 0, 0, missing))
            cos, sin = (F.pad(table, (0, 0, 0, 0, 0, missing)) for table in (cos, sin))
        plan = self.attention.plan(slot, write_index, groups)
        heads = self.config.num_attention_heads
        for index, block in enumerate(self.blocks):
            turned, value = block.project(x, cos, sin)
            keys, values = self.keys[index], self.values[index]
            keys[slot, :, write_index] = turned[:rows, heads:]
            values[slot, :, write_index] = value[:rows]
            mixed = self.attention.mix(turned[:rows, :heads], keys, values, plan)
            if missing:
                mixed = F.pad(mixed, (0, 0, 0, missing))
            x = block.finish(x, mixed)
        hidden = F.rms_norm(x, self.norm.shape, self.norm, self.config.rms_norm_eps)
        logits = self.head(hidden)
        return hidden[:rows], logits[:rows]


class PackedModel:
    """Runs rows of any slots in one pass; `slots` rows of cache of `context` places each."""

    def __init__(
        self,
        model: ByteLlama,
        *,
        slots: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
        make_stack: MakeStack = PackedStack,
    ) -> None:
        config = model.config
        if context > config.max_position_embeddings:
            raise ValueError(
                f"a context of {context} exceeds the model's {config.max_position_embeddings}"
            )
        self.config: ModelConfig = config
        self.device, self.dtype = device, dtype
        self.context, self.slots = context, slots
        self.embedding = model.embedding.weight.detach().to(device, wide(dtype))
        self.stack = make_stack(
            model.stack,
            model.head_weight,
            slots=slots,
            places=context + SLACK,
            device=device,
            dtype=dtype,
        )

    def copy(self, source: int, target: int, places: int) -> None:
        self.stack.copy(source, target, places)

    @torch.no_grad()
    def forward(
        self, tokens: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        """One pass over N rows (int64 [N] each): hidden states [N, D] and logits [N, 256].

        Rows lie group by group, (count, width): `count` spans of `width` rows, a span's rows at
        consecutive places of one slot's cache.  A row sees its slot's places up to its own
        `write_index`, where its key and value go; `position` is what its rotation is made from.
        """
        return self.stack.forward(self.embedding[tokens], slot, position, write_index, groups)
