"""Attention of packed rows over the slots' caches, row by row the same bits in any company.

Two ways, one contract.  `SpanAttention` (CPU) takes each span's slot by itself, over as much of
the cache as it needs; `GatheredAttention` (elsewhere) takes a group at a time without asking the
host.  Neither projects nor rotates.

c spans of w rows in a group, K key-value heads, G query heads for each, d head width, C places.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.config import BlockConfig

Groups = tuple[tuple[int, int], ...]
"""(count, width) of each group of rows: `count` spans of `width` rows."""

CACHE_TILE = 512
"""Places are attended in multiples of this: the CPU kernel sums keys in blocks of 512, and a
shorter last block would be summed in another order."""

ROW_TILE = 4
"""Rows of a span are padded to a multiple of this: fewer rows take other matrix kernels."""

LONGEST_SPAN = 128
"""From 192 query rows on the CPU kernel cuts rows, and so sums, differently."""


class Attention(Protocol):
    def plan(self, slot: Tensor, write_index: Tensor, groups: Groups) -> Any:
        """What `mix` needs to know about the rows, worked out once for all layers."""

    def mix(self, query: Tensor, keys: Tensor, values: Tensor, plan: Any) -> Tensor:
        """query [N, H, d], keys and values [S, K, C, d] → [N, H·d]."""


@dataclass(frozen=True)
class Span:
    slot: int
    length: int
    """Places of the cache to attend to, a multiple of CACHE_TILE."""
    mask: Tensor
    """[rows, length], 0 where a row may look, -inf elsewhere: a view of one table."""


class SpanAttention:
    """A call of the fused CPU kernel for each span.  Reads slots and places on the host."""

    def __init__(
        self, config: BlockConfig, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.capacity = config, capacity
        rows = torch.arange(LONGEST_SPAN).repeat_interleave(config.query_groups)
        ahead = torch.arange(2 * capacity) - capacity > rows[:, None]
        self.table = torch.zeros(ahead.shape, dtype=dtype).masked_fill_(ahead, -torch.inf)

    def plan(
        self, slot: Tensor, write_index: Tensor, groups: Groups
    ) -> list[tuple[int, int, list[Span]]]:
        slots, places = slot.tolist(), write_index.tolist()
        plan, row = [], 0
        for count, width in groups:
            padded = -(-width // ROW_TILE) * ROW_TILE
            spans = []
            for _ in range(count):
                begin = places[row]
                length = -(-(begin + width) // CACHE_TILE) * CACHE_TILE
                left = self.capacity - begin
                mask = self.table[: padded * self.config.query_groups, left : left + length]
                spans.append(Span(slots[row], length, mask))
                row += width
            plan.append((width, padded, spans))
        return plan

    def mix(
        self, query: Tensor, keys: Tensor, values: Tensor, plan: list[tuple[int, int, list[Span]]]
    ) -> Tensor:
        config = self.config
        shared = (config.num_key_value_heads, config.query_groups, config.head_dim)
        row, mixed = 0, []
        for width, padded, spans in plan:
            rows = len(spans) * width
            # [c, K, w, G, d]: the query heads that share a key-value head count as rows
            part = query[row : row + rows].view(len(spans), width, *shared).transpose(1, 2)
            if padded > width:
                part = F.pad(part, (0, 0, 0, 0, 0, padded - width))
            part = part.reshape(len(spans), shared[0], -1, shared[2])
            for index, span in enumerate(spans):
                result = F.scaled_dot_product_attention(
                    part[index : index + 1],
                    keys[span.slot, :, : span.length][None],
                    values[span.slot, :, : span.length][None],
                    attn_mask=span.mask,
                )
                result = result.view(shared[0], padded, *shared[1:])[:, :width]
                mixed.append(result.transpose(0, 1).reshape(width, -1))
            row += rows
        return torch.cat(mixed)


class GatheredAttention:
    """Whole groups against gathered caches, with nothing read on the host."""

    def __init__(
        self, config: BlockConfig, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config = config
        self.places = torch.arange(capacity, device=device)

    def plan(
        self, slot: Tensor, write_index: Tensor, groups: Groups
    ) -> list[tuple[int, int, Tensor, Tensor]]:
        plan, row = [], 0
        for count, width in groups:
            rows = count * width
            slots = slot[row : row + rows : width]
            last = write_index[row : row + rows].view(count, 1, width, 1)
            seen = (self.places <= last).repeat_interleave(self.config.query_groups, 2)
            plan.append((count, width, slots, seen))
            row += rows
        return plan

    def mix(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: list[tuple[int, int, Tensor, Tensor]],
    ) -> Tensor:
        config = self.config
        shared = (config.num_key_value_heads, config.query_groups, config.head_dim)
        row, mixed = 0, []
        for count, width, slots, seen in plan:
            rows = count * width
            part = query[row : row + rows].view(count, width, *shared).transpose(1, 2)
            result = F.scaled_dot_product_attention(
                part.reshape(count, shared[0], -1, shared[2]),
                keys[slots],
                values[slots],
                attn_mask=seen,
            )
            result = result.view(count, shared[0], width, *shared[1:]).transpose(1, 2)
            mixed.append(result.reshape(rows, -1))
            row += rows
        return torch.cat(mixed)


def attention_for(
    device: torch.device, config: BlockConfig, capacity: int, dtype: torch.dtype
) -> Attention:
    kind = SpanAttention if device.type == "cpu" else GatheredAttention
    return kind(config, capacity, device, dtype)
