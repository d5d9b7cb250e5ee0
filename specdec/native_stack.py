"""Blocks, final norm and head on the compiled core, and the model that decodes on it.

Takes weights from trainable modules; the core keeps copies of its own, packed, and the cache.
Bits differ from those of `specdec.packed` (sums are ordered otherwise), so a process uses one or
the other for all of its decoding.
"""

import ctypes
from weakref import finalize

import torch
from torch import Tensor

from specdec.attention import Groups
from specdec.config import VOCAB_SIZE, BlockConfig, ModelConfig
from specdec.layers import Block, Stack, rotary_table
from specdec.model import ByteLlama
from specdec.native_library import native_library, team
from specdec.packed import SLACK

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""What weights may be, as the core numbers it."""

MOST_PLACES = 500_000
"""Of a text: sums of 31 bits hold no more weights of places times values (native/cache.h)."""


class NativeStack:
    """A stack and a head over `slots` caches of `places` each.

    `dtype` is that of weights and cache, bfloat16 or float32; with int8 weights have a scale for
    each output, and the cache is bfloat16.  Where bfloat16 is multiplied as 16-bit integers the
    cache holds those, with a scale for each key and value.  Sums are float32, or exact.
    """

    def __init__(
        self, stack: Stack, head: Tensor, *, slots: int, places: int, dtype: torch.dtype
    ) -> None:
        if dtype not in KINDS:
            raise ValueError(f"the compiled core has no {dtype}")
        if places > MOST_PLACES:
            raise ValueError(f"{places} places exceed the compiled core's {MOST_PLACES}")
        # what becomes integers comes as the checkpoint has it
        rounded = torch.float32 if dtype == torch.int8 else dtype
        self._library, self._team = native_library(), team()
        block: BlockConfig = stack.blocks[0].config  # type: ignore[assignment]
        self.width = block.hidden_size
        shape = torch.tensor(
            [
                len(stack.blocks),
                block.hidden_size,
                block.num_attention_heads,
                block.num_key_value_heads,
                block.head_dim,
                block.intermediate_size,
                slots,
                places,
                VOCAB_SIZE,
            ]
        )
        head = head.detach().float()
        # the head is kept in float32, at half the size where that loses nothing
        half_head = bool((head == head.bfloat16().float()).all())
        self.handle: int = self._library.specdec_stack(
            shape.data_ptr(), block.rms_norm_eps, KINDS[dtype], half_head
        )
        finalize(self, self._library.specdec_stack_free, self.handle)
        for index, layer in enumerate(stack.blocks):
            assert isinstance(layer, Block)
            arrays = [
                plain(layer.attention_norm.weight),
                plain(layer.qkv.weight.to(rounded)),
                plain(layer.output.weight.to(rounded)),
                plain(layer.feed_forward_norm.weight),
                plain(layer.gate_up.weight.to(rounded)),
                plain(layer.down.weight.to(rounded)),
            ]
            self._library.specdec_block(self.handle, index, *(a.data_ptr() for a in arrays))
        tables = rotary_table(places, block.head_dim, block.rope_theta)
        arrays = [plain(stack.norm.weight), plain(head), *map(plain, tables)]
        self._library.specdec_finish(self.handle, *(a.data_ptr() for a in arrays))

    def forward(
        self, x: Tensor, slot: Tensor, position: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [N, D] and logits [N, 256] of x [N, D]; the rest is int64 [N]."""
        rows = x.shape[0]
        x, slot, position, index = (part.contiguous() for part in (x, slot, position, index))
        hidden, logits = torch.empty(rows, self.width), torch.empty(rows, VOCAB_SIZE)
        arrays = (x, slot, position, index, hidden, logits)
        self._library.specdec_forward(
            self.handle, self._team, rows, *(ctypes.c_void_p(a.data_ptr()) for a in arrays)
        )
        return hidden, logits


def slot_bytes(block: BlockConfig, depth: int, context: int, dtype: torch.dtype) -> int:
    """What `depth` blocks take of cache for a slot of `context` bytes, in the core's tiles."""
    each: int = native_library().specdec_text_bytes(KINDS[dtype], context + SLACK, block.head_dim)
    return each * depth * block.num_key_value_heads


def cache_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of keys and values beside weights of that type."""
    return torch.bfloat16 if dtype == torch.int8 else dtype


class NativeModel:
    """The model as `specdec.packed.PackedModel` runs it, in one call of the compiled core."""

    def __init__(self, model: ByteLlama, *, slots: int, context: int, dtype: torch.dtype) -> None:
        config = model.config
        if context > config.max_position_embeddings:
            raise ValueError(
                f"a context of {context} exceeds the model's {config.max_position_embeddings}"
            )
        self.config: ModelConfig = config
        self.device, self.dtype = torch.device("cpu"), dtype
        self.context, self.slots = context, slots
        self.embedding = model.embedding.weight.detach().float()
        self.stack = NativeStack(
            model.stack, model.head_weight, slots=slots, places=context + SLACK, dtype=dtype
        )
        self._library = native_library()
        self.handle: int = self._library.specdec_model(self.stack.handle, self.embedding.data_ptr())
        finalize(self, self._library.specdec_model_free, self.handle)

    @torch.no_grad()
    def forward(
        self, tokens: Tensor, slot: Tensor, position: Tensor, write_index: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        return self.stack.forward(self.embedding[tokens], slot, position, write_index)

    def copy(self, source: int, target: int, places: int) -> None:
        self._library.specdec_model_copy(self.handle, source, target, places)


def plain(tensor: Tensor) -> Tensor:
    """As the core takes weights: on the CPU, in float32, without gaps."""
    return tensor.detach().to("cpu", torch.float32).contiguous()
