"""The processes that train together: one, or those that torchrun has started.

Every process draws the same batches and takes its share of the rows; gradients are averaged, so
that several processes do what one does with the whole batch.  Knows no model.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World:
    """`rank` of `size`; alone where torchrun's variables are not set."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        if name == "cuda" and self.size > 1:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        return torch.device(name)

    def join(self, device: torch.device) -> None:
        if self.size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows.  ValueError where they cannot be shared evenly."""
        if len(rows) % self.size:
            raise ValueError(
                f"batch: {len(rows)} rows cannot be shared evenly by {self.size} processes"
            )
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
        flags = torch.tensor(
            [float(flag)], device="cpu" if dist.get_backend() == "gloo" else "cuda"
        )
        dist.all_reduce(flags)
        return bool(flags.item())
