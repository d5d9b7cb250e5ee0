"""The kinds of prophet: from a record to a module, and from a module to what drafts with it."""

import torch

from specdec.autoregressive_drafter import AutoregressiveDrafter
from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.config import ProphetConfig
from specdec.drafter import Drafter
from specdec.packed import MakeStack, PackedStack
from specdec.parallel_drafter import ParallelDrafter
from specdec.parallel_prophet import ParallelProphet
from specdec.prophet import Prophet


def build_prophet(config: ProphetConfig, context: int) -> Prophet:
    """A new prophet for texts of up to `context` bytes."""
    if config.kind == "parallel":
        return ParallelProphet(config, context)
    return AutoregressiveProphet(config)


def build_drafter(
    prophet: Prophet,
    *,
    slots: int,
    context: int,
    device: torch.device,
    dtype: torch.dtype,
    make_stack: MakeStack = PackedStack,
) -> Drafter:
    """What drafts with it on torch's operations, and on the stack's where it has a cache."""
    if isinstance(prophet, ParallelProphet):
        return ParallelDrafter(
            prophet,
            slots=slots,
            context=context,
            device=device,
            dtype=dtype,
            make_stack=make_stack,
        )
    assert isinstance(prophet, AutoregressiveProphet)
    return AutoregressiveDrafter(prophet, slots=slots, device=device, dtype=dtype)
