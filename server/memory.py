"""Memory: of the GPU that the engine decodes on, and what Python's collector looks at."""

import gc
from dataclasses import dataclass

import torch


def spare_collector() -> None:
    """For use once a process has loaded: a collection that looked at all of that again would hold
    up every request for a tenth of a second."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class GpuMemory:
    """Bytes: held by tensors, reserved by torch for them, in use by anyone, there at all."""

    allocated: int
    reserved: int
    used: int
    total: int


def gpu_memory(device: torch.device) -> GpuMemory | None:
    """None where there is no GPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return GpuMemory(
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        total - free,
        total,
    )
