"""The autoregressive prophet while decoding: a ring of states for each slot, γ small passes.

c rows of a group, W rows verified for each, γ drafts, s leading states, D width of the model.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.config import LONGEST_DRAFT
from specdec.drafter import ALL, Picker
from specdec.layers import rotary_table, wide
from specdec.packed import PackedBlock, pack_linear


class Passes(Protocol):
    """The prophet's blocks over what one round drafts."""

    def begin(self, slots: Tensor) -> Any:
        """What the passes of a round keep, for rows of slots [c]."""

    def advance(self, x: Tensor, newest: int, kept: Any) -> Tensor:
        """Logits [c, 256] after x [c, t, P], whose last row has position `newest`."""


class AutoregressiveDrafter:
    """Runs an `AutoregressiveProphet` for the slots: a ring of s states each, γ small passes.

    Within a round the prophet keeps its own keys and values; between rounds only the ring.
    """

    longest, memory = LONGEST_DRAFT, ALL

    def __init__(
        self,
        prophet: AutoregressiveProphet,
        *,
        slots: int,
        device: torch.device,
        dtype: torch.dtype,
        passes: Passes | None = None,
    ) -> None:
        config = prophet.config
        kind = wide(dtype)
        self.config, self.dtype = config, dtype
        self.leading = config.leading_states
        self.embedding = prophet.embedding.weight.detach().to(device, kind)
        self.missing = prophet.missing.detach().to(device, kind)
        self.projection = pack_linear(prophet.projection.weight.to(device, dtype))
        places = self.leading + self.longest
        self.passes = passes or PackedPasses(prophet, places, device, dtype)
        self.states = torch.zeros(
            slots, self.leading, config.model_hidden_size, device=device, dtype=kind
        )
        self.kept = torch.zeros_like(self.states)
        self.offsets = torch.arange(self.leading, device=device)

    @torch.no_grad()
    def observe(
        self, slots: Tensor, start: Tensor, hidden: Tensor, tokens: Tensor, advance: Tensor
    ) -> None:
        # rows 0..s-1 are the ring, then the new states: the last s committed start at `advance`
        known = torch.cat((self.states[slots], hidden.to(self.states.dtype)), 1)
        index = (advance[:, None] + self.offsets)[..., None].expand(-1, -1, known.shape[2])
        self.states[slots] = known.gather(1, index)

    def keep(self, slot: int) -> None:
        self.kept[slot] = self.states[slot]

    def copy(self, source: int, target: int, places: int) -> None:
        self.states[target] = self.kept[target] = self.kept[source]

    @torch.no_grad()
    def draft(
        self, slots: Tensor, last: Tensor, length: Tensor, gamma: int, rule: Picker
    ) -> Tensor:
        count, s = slots.shape[0], self.leading
        projected = self.projection(self.states[slots].flatten(0, 1).to(self.dtype))
        present = (length[:, None] - s + self.offsets >= 0)[..., None]
        lead = torch.where(
            present, projected.view(count, s, -1).to(self.missing.dtype), self.missing
        )
        x = torch.cat((lead, self.embedding[last][:, None]), 1)
        drafts: list[Tensor] = []
        kept = self.passes.begin(slots)
        for step in range(gamma):
            logits = self.passes.advance(x, self.leading + step, kept)
            drafts.append(rule.pick(step, logits))
            x = self.embedding[drafts[-1]][:, None]
        return torch.stack(drafts, 1)


Caches = list[tuple[Tensor, Tensor]]
"""Keys and values of each block within one round."""


class PackedPasses:
    """On torch's operations."""

    def __init__(
        self,
        prophet: AutoregressiveProphet,
        places: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        kind = wide(dtype)
        self.config = block = prophet.config.block
        self.blocks = [PackedBlock(b, device, dtype) for b in prophet.stack.blocks]  # type: ignore[arg-type]
        self.norm = prophet.stack.norm.weight.detach().to(device, kind)
        self.head = pack_linear(prophet.head.weight.to(device, kind))
        cos, sin = rotary_table(places, block.head_dim, block.rope_theta, kind)
        self.cos, self.sin = cos.to(device)[:, None], sin.to(device)[:, None]

    def begin(self, slots: Tensor) -> Caches:
        return []

    def advance(self, x: Tensor, newest: int, kept: Caches) -> Tensor:
        count, rows = x.shape[:2]
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        cos, sin = (table[newest + 1 - rows : newest + 1] for table in (self.cos, self.sin))
        if rows > 1:  # a single place broadcasts
            cos, sin = cos.repeat(count, 1, 1), sin.repeat(count, 1, 1)
        x = x.flatten(0, 1)
        for index, block in enumerate(self.blocks):
            turned, value = block.project(x, cos, sin)
            query, key = (
                part.unflatten(0, (count, rows)).transpose(1, 2)
                for part in (turned[:, :heads], turned[:, heads:])
            )
            value = value.unflatten(0, (count, rows)).transpose(1, 2)
            if index < len(kept):
                key = torch.cat((kept[index][0], key), 2)
                value = torch.cat((kept[index][1], value), 2)
                kept[index] = (key, value)
            else:
                kept.append((key, value))
            groups = heads // kv_heads
            mixed = F.scaled_dot_product_attention(
                query,
                key.repeat_interleave(groups, 1) if groups > 1 else key,
                value.repeat_interleave(groups, 1) if groups > 1 else value,
                is_causal=rows > 1,
            )
            x = block.finish(x, mixed.transpose(1, 2).reshape(count * rows, -1))
        hidden = x.unflatten(0, (count, rows))[:, -1]
        return self.head(F.rms_norm(hidden, self.norm.shape, self.norm, self.config.rms_norm_eps))
