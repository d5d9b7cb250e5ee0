"""The processes that train together: one, or those that torchrun has started.

Every process draws the same batches and takes its share of the rows; gradients are averaged, so
that several processes do what one does with the whole batch.  Knows no model.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=6)
"""How long processes wait for the leader, which packs, validates and saves alone."""

Value = TypeVar("Value")


class World:
    """`rank` of `size`; alone where torchrun's variables are not set."""

    def __init__(self) -> None:
        self.joined = torch.device("cpu")
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of that name; of several GPUs that of this process.

        ValueError for a name that is none, and where processes would share the GPU it names.
        """
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"--device: {name}: {error}") from None
        if device.type != "cuda" or self.size == 1:
            return device
        if device.index is not None:
            raise ValueError(f"--device: {name} is one GPU for {self.size} processes; give cuda")
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))

    def join(self, device: torch.device) -> None:
        """Meets the other processes.  What they exchange lies on `device`, each on its own."""
        self.joined = device
        if self.size == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)  # or every process exchanges by way of the first GPU
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the block before the others: they find what it has written.

        They go on after it has failed too, and fail alike.
        """
        if self.size > 1 and not self.leads:
            dist.barrier()
        try:
            yield
        finally:
            if self.size > 1 and self.leads:
                dist.barrier()

    def leaders(self, value: Value) -> Value:
        """What the leader says."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.joined)
        return values[0]

    def require_even(self, rows: int) -> None:
        """ValueError where the rows of a batch cannot be shared evenly."""
        if rows % self.size:
            raise ValueError(
                f"--batch: {rows} rows cannot be shared evenly by {self.size} processes"
            )

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of an even batch."""
        self.require_even(len(rows))
        return rows[self.rank :: self.size]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def any(self, flag: bool) -> bool:
        """Whether it holds anywhere: all processes stop at the same step."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.joined)
        dist.all_reduce(flags)
        return bool(flags.item())


def require_present(device: torch.device) -> None:
    """ValueError where the machine, or this build of torch, does not have the device."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(f"--device: {device} cannot be used here: {reason}") from None
