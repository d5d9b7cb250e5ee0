"""A decoder from trained modules: packed weights, cache, drafter and slots in one call."""

import importlib
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from specdec import native_stack, packed
from specdec.config import LONGEST_DRAFT, ModelConfig, ProphetConfig
from specdec.decoder import Decoder
from specdec.drafter import Drafter, SlotDrafter
from specdec.graph_round import IDLE_SLOTS, Capture, GraphRounds
from specdec.kinds import build_drafter
from specdec.model import ByteLlama
from specdec.native_library import NativeUnavailable, native_library, torch_on_one_thread
from specdec.native_round import NativeDrafter, native_repeats, run_native_round
from specdec.native_stack import NativeModel
from specdec.packed import PackedModel
from specdec.prophet import Prophet
from specdec.round import RunRound
from specdec.state import SlotState
from specdec.torch_round import run_round

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "native", "cuda", "torch"]
"""What passes run on: the compiled core (CPU), Triton kernels in CUDA graphs, torch's operations;
auto is the first of them that can be had."""

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
    draft_lengths: Iterable[int] = range(LONGEST_DRAFT + 1),
) -> Decoder[Model]:
    """`context` bytes a slot, the model's own if left out; without a prophet base mode only.

    With int8 the weights of the model's blocks are 8-bit integers, which is another model; the
    prophet's are bfloat16.  Of `draft_lengths` CUDA graphs are made, rounds of others take the
    next.  ValueError where the model has no such context, or kernels are asked for that cannot be
    had.
    """
    context = context or model.config.max_position_embeddings
    passes: Model
    drafter: SlotDrafter | None = None
    state: SlotState | None = None
    if runs_natively(kernels, device, dtype):
        passes = NativeModel(model, slots=slots, context=context, dtype=dtype)
        if prophet is not None:
            drafter = NativeDrafter(
                prophet, slots=slots, context=context, dtype=native_stack.cache_dtype(dtype)
            )
        run: RunRound = run_native_round
        state = SlotState(slots, device, keeps_noise=False)
    elif runs_on_graphs(kernels, device, dtype):
        from specdec.cuda_graph import CudaGraphs

        return build_graph_decoder(
            model,
            prophet,
            slots=slots,
            device=device,
            dtype=dtype,
            context=context,
            draft_lengths=draft_lengths,
            capture=CudaGraphs(device),
        )
    else:
        passes = PackedModel(model, slots=slots, context=context, device=device, dtype=dtype)
        if prophet is not None:
            drafter = build_drafter(
                prophet, slots=slots, context=context, device=device, dtype=dtype
            )
        run = run_round
    return Decoder(
        passes,
        drafter,
        slots=slots,
        context=context,
        device=device,
        run_round=run,
        state=state,
        repeats=partial(native_repeats, passes) if isinstance(passes, NativeModel) else None,
    )


def build_graph_decoder(
    model: ByteLlama,
    prophet: Prophet | None,
    *,
    slots: int,
    device: torch.device,
    dtype: torch.dtype,
    context: int,
    draft_lengths: Iterable[int],
    capture: Capture | None,
) -> Decoder[Model]:
    """On Triton kernels, which without a GPU must be interpreted; see `GraphRounds`."""
    # Triton is torch's own dependency where torch has CUDA, and missing elsewhere
    from specdec.triton_drafters import build_triton_drafter
    from specdec.triton_rule import TritonRule
    from specdec.triton_stack import TritonStack

    all_slots = slots + IDLE_SLOTS
    passes = PackedModel(
        model,
        slots=all_slots,
        context=context,
        device=device,
        dtype=dtype,
        make_stack=TritonStack,
    )
    drafter: Drafter | None = None
    if prophet is not None:
        drafter = build_triton_drafter(
            prophet, slots=all_slots, context=context, device=device, dtype=dtype
        )
    state = SlotState(all_slots, device, keeps_noise=False)
    rounds = GraphRounds(passes, drafter, state, TritonRule, draft_lengths, capture)
    return Decoder(
        passes,
        drafter,
        slots=slots,
        context=context,
        device=device,
        run_round=rounds,
        state=state,
        ahead=True,
    )


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
    """What the cache of one slot will take, of what grows with the context.

    On Triton kernels a little less: their caches have no places beyond.
    """
    native = runs_natively(kernels, device, dtype)
    bytes_of = native_stack.slot_bytes if native else packed.slot_bytes
    size = bytes_of(model.block, model.num_hidden_layers, context, dtype)
    if prophet is not None and prophet.kind == "parallel":
        size += bytes_of(prophet.block, prophet.num_hidden_layers, context, dtype)
    return size


def spare_slots(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> int:
    """Slots of cache that are had beside those that requests run in."""
    return IDLE_SLOTS if runs_on_graphs(kernels, device, dtype) else 0


def runs_natively(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the compiled core is used; it has no other device than the CPU and no float64."""
    if dtype == torch.int8:  # which nothing else has
        if kernels not in ("auto", "native"):
            raise ValueError(f"kernels: those of {kernels} have no int8")
        kernels = "native"
    fits = device.type == "cpu" and dtype in native_stack.KINDS
    if kernels in ("torch", "cuda") or (kernels == "auto" and not fits):
        return False
    if not fits:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in native_stack.KINDS)
        raise ValueError(f"kernels: native ones are for {kinds} on cpu, not {dtype} on {device}")
    try:
        native_library()
    except NativeUnavailable as error:
        if kernels == "native":
            raise ValueError(f"kernels: native ones are needed here: {error}") from None
        logger.warning("decoding on torch's operations, several times slower: %s", error)
        return False
    return True


def runs_on_graphs(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton kernels in CUDA graphs are used; they have no float64."""
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float32)
    if kernels not in ("cuda", "auto") or (kernels == "auto" and not fits):
        return False
    if not fits:
        raise ValueError(
            f"kernels: those of cuda are for bfloat16 and float32 on cuda, not {dtype} on {device}"
        )
    missing = _missing_for_graphs(device)
    if missing and kernels == "cuda":
        raise ValueError(f"kernels: those of cuda were asked for: {missing}")
    if missing:
        logger.warning("decoding on torch's operations, without CUDA graphs: %s", missing)
    return not missing


def _missing_for_graphs(device: torch.device) -> str:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than the kernels are made for (compute capability 8.0)"
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return _missing_for_triton()


def _missing_for_triton() -> str:
    """Of what it compiles its launchers with when a kernel is first run."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler"
    scheme = sysconfig.get_default_scheme()
    # as Triton looks for them, where Debian's own scheme would name a place for local packages
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    headers = Path(sysconfig.get_paths(scheme)["include"])
    if not (headers / "Python.h").exists():
        return f"Triton needs Python's headers (python3-dev), and {headers} has no Python.h"
    return ""
