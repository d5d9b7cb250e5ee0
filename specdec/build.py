"""A decoder from trained modules: packed weights, cache, drafter and slots in one call."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from specdec import native_stack, packed
from specdec.config import ModelConfig, ProphetConfig
from specdec.decoder import Decoder
from specdec.drafter import SlotDrafter
from specdec.kinds import build_drafter
from specdec.model import ByteLlama
from specdec.native_library import NativeUnavailable, native_library, torch_on_one_thread
from specdec.native_round import NativeDrafter, run_native_round
from specdec.native_stack import NativeModel
from specdec.packed import PackedModel
from specdec.prophet import Prophet
from specdec.round import RunRound
from specdec.torch_round import run_round

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "native", "torch"]
"""What passes run on: the compiled core, torch's operations, or the first where it can be had."""

Model = PackedModel | NativeModel


def build_decoder(
    model: ByteLlama,
    prophet: Prophet | None,
    *,
    slots: int,
    device: torch.device,
    dtype: torch.dtype,
    context: int | None = None,
    kernels: Kernels = "auto",
) -> Decoder[Model]:
    """`context` bytes a slot, the model's own if left out; without a prophet base mode only.

    ValueError where the model has no such context, or native kernels are asked for and cannot be
    had.
    """
    context = context or model.config.max_position_embeddings
    passes: Model
    drafter: SlotDrafter | None = None
    if runs_natively(kernels, device, dtype):
        passes = NativeModel(model, slots=slots, context=context, dtype=dtype)
        if prophet is not None:
            drafter = NativeDrafter(prophet, slots=slots, context=context, dtype=dtype)
        run: RunRound = run_native_round
    else:
        passes = PackedModel(model, slots=slots, context=context, device=device, dtype=dtype)
        if prophet is not None:
            drafter = build_drafter(
                prophet, slots=slots, context=context, device=device, dtype=dtype
            )
        run = run_round
    return Decoder(passes, drafter, slots=slots, context=context, device=device, run_round=run)


def decoding(decoder: Decoder[Model]) -> AbstractContextManager[None]:
    """What to decode within where torch also does other work, such as training."""
    return torch_on_one_thread() if isinstance(decoder.model, NativeModel) else nullcontext()


def slot_bytes(
    model: ModelConfig,
    prophet: ProphetConfig | None,
    context: int,
    device: torch.device,
    dtype: torch.dtype,
    kernels: Kernels,
) -> int:
    """What the cache of one slot will take, of what grows with the context."""
    native = runs_natively(kernels, device, dtype)
    bytes_of = native_stack.slot_bytes if native else packed.slot_bytes
    size = bytes_of(model.block, model.num_hidden_layers, context, dtype)
    if prophet is not None and prophet.kind == "parallel":
        size += bytes_of(prophet.block, prophet.num_hidden_layers, context, dtype)
    return size


def runs_natively(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the compiled core is used; it has no other device than the CPU and no float64."""
    fits = device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)
    if kernels == "torch" or (kernels == "auto" and not fits):
        return False
    if not fits:
        raise ValueError(
            f"kernels: native ones are for bfloat16 and float32 on cpu, not {dtype} on {device}"
        )
    try:
        native_library()
    except NativeUnavailable as error:
        if kernels == "native":
            raise ValueError(f"kernels: native ones were asked for: {error}") from None
        logger.warning("decoding on torch's operations, several times slower: %s", error)
        return False
    return True
