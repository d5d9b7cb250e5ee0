"""Blocks, final norm and head on Triton kernels: `specdec.packed.PackedStack` where CUDA is.

Five kernels a block; the same for prompts and for decoding, for any number of rows, so that
a row's bits are its own (`specdec.triton_kernels` says why).  Imports Triton.

N packed rows, S slots, D width, H query heads, K key-value heads, d head width, C cached places.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.attention import Groups
from specdec.config import VOCAB_SIZE, BlockConfig
from specdec.layers import Block, Stack, rotary_table
from specdec.packed import Linear, cache_of, pack_linear
from specdec.triton_kernels import (
    add_kernel,
    attend_kernel,
    gate_kernel,
    head_kernel,
    project_kernel,
)

ROW_TILE = 16
"""Rows of a tile: what tensor cores multiply at a time, and enough for decoding."""

COLUMNS = 16
"""Outputs of a program: few, so that a pass over few rows has programs for many processors."""

PAIRS = 16
"""Pairs of outputs that are rotated together, of a program."""

BLOCK = 128
"""Inputs of a step of a sum."""

PLACES = 64
"""Cached places of a step of attention, at most."""

WIDEST_TILE = 16384
"""Bytes of keys, or of values, of a step: a few steps are on their way at a time."""

LEAST_SPLIT, MOST_SPLITS = 256, 16
"""Places that a program attends to at least, and splits of a cache at most: a longer one has longer
splits, so that partial sums stay small."""

LAUNCH = {"num_warps": 4, "num_stages": 3}


@dataclass(frozen=True)
class _Weights:
    attention_norm: Tensor
    qkv: Tensor
    output: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, block: Block, device: torch.device, dtype: torch.dtype) -> "_Weights":
        return cls(
            plain(block.attention_norm.weight, device, torch.float32),
            plain(block.qkv.weight, device, dtype),
            plain(block.output.weight, device, dtype),
            plain(block.feed_forward_norm.weight, device, torch.float32),
            plain(block.gate_up.weight, device, dtype),
            plain(block.down.weight, device, dtype),
        )


class TritonStack:
    """A `specdec.packed.SlotStack` over `slots` caches of `places` places each.

    `dtype` is that of weights and cache, bfloat16 or float32; the stream, norms, sums and the head
    are float32.
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
        if dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"the Triton kernels have no {dtype}")
        blocks: Iterable[Block] = stack.blocks  # type: ignore[assignment]
        self.dtype = dtype
        self.weights = [_Weights.of(block, device, dtype) for block in blocks]
        self.config: BlockConfig = stack.blocks[0].config  # type: ignore[assignment]
        self.norm = plain(stack.norm.weight, device, torch.float32)
        self.head_weight = plain(head, device, torch.float32)
        self.head = pack_linear(self.head_weight)
        self.keys, self.values = (
            cache_of(self.config, len(self.weights), slots, places, device, dtype) for _ in range(2)
        )
        self.split = -(-places // (LEAST_SPLIT * MOST_SPLITS)) * LEAST_SPLIT
        self.splits = -(-places // self.split)
        cos, sin = rotary_table(places, self.config.head_dim, self.config.rope_theta)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def copy(self, source: int, target: int, places: int) -> None:
        for cache in (self.keys, self.values):
            cache[:, target, :, :places] = cache[:, source, :, :places]

    def remember(self, x: Tensor, slot: Tensor, place: Tensor) -> None:
        x, slot, place = (part.contiguous() for part in (x, slot, place))
        self._project(0, x, slot, place, place, self.keys, self.config.num_attention_heads)

    @torch.no_grad()
    def forward(
        self, x: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        x, slot, position, write_index = (
            part.contiguous() for part in (x, slot, position, write_index)
        )
        config, rows = self.config, x.shape[0]
        heads, d = config.num_attention_heads, config.head_dim
        # tensors of their own: what a pointer is a multiple of must not depend on the rows
        query, mixed = (x.new_empty(rows, heads * d, dtype=self.dtype) for _ in range(2))
        inner = x.new_empty(rows, config.intermediate_size, dtype=self.dtype)
        partial = weights = query  # of one split there are no partial sums
        arrivals = [query] * len(self.weights)
        if self.splits > 1:
            partial = x.new_empty(rows, heads, self.splits, d)
            weights = x.new_empty(rows, heads, self.splits, 2)
            # each block's begins at a multiple of 16 bytes, whatever the rows
            count = -(-rows * config.num_key_value_heads // 4) * 4
            arrivals = list(x.new_zeros(len(self.weights), count, dtype=torch.int32))
        stream = torch.empty_like(x)
        for index, block in enumerate(self.weights):
            self._project(index, x, slot, position, write_index, query, 0)
            self._attend(index, query, slot, write_index, mixed, partial, weights, arrivals[index])
            add(x, mixed, block.output, stream)
            x = stream  # from here on the stream is changed in place
            gate(x, block.feed_forward_norm, block.gate_up, inner, config.rms_norm_eps)
            add(x, inner, block.down, x)
        return final(x, self.norm, self.head_weight, config.rms_norm_eps)

    def _project(
        self,
        index: int,
        x: Tensor,
        slot: Tensor,
        position: Tensor,
        write_index: Tensor,
        query: Tensor,
        first_head: int,
    ) -> None:
        """Queries, keys and values of a block; without the former from `first_head` H on."""
        config, block, keys = self.config, self.weights[index], self.keys[index]
        rows, width = x.shape
        pairs = -(-(config.head_dim // 2) // PAIRS)
        project_kernel[(-(-rows // ROW_TILE), pairs, config.qkv_heads - first_head)](
            x,
            block.attention_norm,
            block.qkv,
            self.cos,
            self.sin,
            slot,
            position,
            write_index,
            query,
            keys,
            self.values[index],
            rows,
            config.rms_norm_eps,
            keys.stride(0),
            keys.stride(1),
            first_head,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            width,
            ROW_TILE,
            PAIRS,
            BLOCK,
            **LAUNCH,
        )

    def _attend(
        self,
        index: int,
        query: Tensor,
        slot: Tensor,
        write_index: Tensor,
        mixed: Tensor,
        partial: Tensor,
        weights: Tensor,
        arrived: Tensor,
    ) -> None:
        config, keys = self.config, self.keys[index]
        rows, heads, d = len(query), config.num_attention_heads, config.head_dim
        tile = max(16, 1 << (d - 1).bit_length())
        # of wide heads fewer places at a time: tiles of both lie in shared memory
        places = min(PLACES, max(16, WIDEST_TILE // (tile * self.dtype.itemsize)))
        attend_kernel[(rows, config.num_key_value_heads, self.splits)](
            query,
            keys,
            self.values[index],
            slot,
            write_index,
            mixed,
            partial,
            weights,
            arrived,
            keys.stride(0),
            keys.stride(1),
            d**-0.5,
            heads,
            config.num_key_value_heads,
            d,
            tile,
            max(16, 1 << (config.query_groups - 1).bit_length()),
            places,
            self.split,
            self.splits,
            **LAUNCH,
        )


def plain(weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(device, dtype).contiguous()


def linear(weight: Tensor, device: torch.device, dtype: torch.dtype) -> Linear:
    """x [N, in] → [N, out] in float32, the weight [out, in] in `dtype`.

    Not cuBLAS, whose workspace a captured graph would hold on to.
    """
    weight = plain(weight, device, dtype)

    def product(x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), len(weight), dtype=torch.float32)
        add(out, x.contiguous(), weight, out)
        return out

    return product


def add(x: Tensor, inputs: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [N, D] = x [N, D] + inputs [N, I] times weight [D, I]; `out` may be `x`."""
    rows, width = x.shape
    add_kernel[(-(-rows // ROW_TILE), -(-width // COLUMNS))](
        x, inputs, weight, out, rows, inputs.shape[1], width, ROW_TILE, COLUMNS, BLOCK, **LAUNCH
    )


def gate(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    out: Tensor,
    eps: float,
    cell: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """out [N, F] = silu(gate)·up of the normed x [N, D].

    For a cell (embedding [256, D], tokens [N], seen [N, D]): see `gate_kernel`.
    """
    rows, width = x.shape
    inner = out.shape[1]
    embedding, tokens, seen = cell or (x, x, x)
    gate_kernel[(-(-rows // ROW_TILE), -(-inner // COLUMNS))](
        x,
        norm,
        weight,
        out,
        embedding,
        tokens,
        seen,
        rows,
        eps,
        width,
        inner,
        ROW_TILE,
        COLUMNS,
        BLOCK,
        cell is not None,
        **LAUNCH,
    )


def final(x: Tensor, norm: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed x [N, D] and logits [N, 256]."""
    rows, width = x.shape
    hidden, logits = torch.empty_like(x), x.new_empty(rows, VOCAB_SIZE)
    head_kernel[(-(-rows // ROW_TILE), VOCAB_SIZE // COLUMNS)](
        x, norm, weight, hidden, logits, rows, eps, width, VOCAB_SIZE, ROW_TILE, COLUMNS, BLOCK,
        **LAUNCH,
    )  # fmt: skip
    return hidden, logits
