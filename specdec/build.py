"""A decoder from trained modules: packed weights, cache, drafter and slots in one call."""

import torch

from specdec.decoder import Decoder
from specdec.drafter import AutoregressiveDrafter
from specdec.model import ByteLlama
from specdec.packed import PackedModel
from specdec.prophet import AutoregressiveProphet


def build_decoder(
    model: ByteLlama,
    prophet: AutoregressiveProphet | None,
    *,
    slots: int,
    device: torch.device,
    dtype: torch.dtype,
    context: int | None = None,
) -> Decoder[PackedModel]:
    """`context` bytes a slot, the model's own if left out; without a prophet base mode only.

    ValueError where the model has no such context.
    """
    context = context or model.config.max_position_embeddings
    packed = PackedModel(model, slots=slots, context=context, device=device, dtype=dtype)
    drafter = None
    if prophet is not None:
        drafter = AutoregressiveDrafter(prophet, slots=slots, device=device, dtype=dtype)
    return Decoder(packed, drafter, slots=slots, context=context, device=device)
