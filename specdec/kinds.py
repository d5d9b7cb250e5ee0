"""The kinds of prophet: from a record to a module, and from a module to what drafts with it."""

import torch

from specdec.autoregressive_drafter import AutoregressiveDrafter
from specdec.autoregressive_prophet import AutoregressiveProphet
from specdec.config import ProphetConfig
from specdec.drafter import Drafter
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
) -> Drafter:
    """What drafts with it on torch's operations."""
    if isinstance(prophet, ParallelProphet):
        return ParallelDrafter(prophet, slots=slots, context=context, device=device, dtype=dtype)
    assert isinstance(prophet, AutoregressiveProphet)
    return AutoregressiveDrafter(prophet, slots=slots, device=device, dtype=dtype)
