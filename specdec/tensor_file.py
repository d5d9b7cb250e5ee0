"""Tensors in safetensors files: written as bytes, read by name with every claim checked.

Knows names, shapes and types; does not know what a tensor is for.  Never unpickles: a pickle that
lies where a safetensors file should be is refused unread.
"""

import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specdec.checkpoint_file import CheckpointError, read_object

TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Types of tensors that are read and written, under their names in safetensors."""

PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


def tensor_bytes(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> bytes:
    """The safetensors file that is to lie at `path`, with the tensors in `dtype`."""
    if dtype not in TYPES.values():
        raise CheckpointError(f"{path}: tensors are not stored as {dtype}")
    stored = {name: tensor.detach().to("cpu", dtype) for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        _require_finite(path, name, tensor)
    return safetensors.torch.save(stored, {"format": "pt"})


def _require_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{path}: tensor {name} holds values that are not finite")


def _missing(path: Path, why: str = "") -> CheckpointError:
    pickles = sorted(p.name for p in path.parent.iterdir() if p.suffix in PICKLES)
    hint = f"; {pickles[0]} is there, but pickles are never loaded" if pickles else ""
    return CheckpointError(f"{path} is missing{why}{hint}")


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: its file, and what reads it."""

    path: Path
    name: str
    handle: Any

    def read(self) -> Tensor:
        tensor: Tensor = self.handle.get_tensor(self.name)
        return tensor

    def require(self, shape: torch.Size) -> None:
        piece = self.handle.get_slice(self.name)
        found = tuple(piece.get_shape())
        if found != tuple(shape):
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has shape {found}, expected {tuple(shape)}"
            )
        if piece.get_dtype() not in TYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has type {piece.get_dtype()}, "
                f"expected one of {', '.join(TYPES)}"
            )


class TensorFile:
    """The tensors of a safetensors file, or of the shards that an index next to it names.

    As in transformers the file itself, where it exists, goes before an index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._open_files.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open_files.close()

    def _open(self) -> None:
        index = self.path.with_name(f"{self.path.name}.index.json")
        if self.path.is_file():
            self._add(self.path)
        elif index.is_file():
            self._add_shards(index)
        else:
            raise _missing(self.path)

    def _add(self, path: Path) -> None:
        try:
            handle = self._open_files.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file: {error}") from error
        for name in handle.keys():  # noqa: SIM118
            if name in self.tensors:
                raise CheckpointError(
                    f"{path}: tensor {name} is in {self.tensors[name].path.name} too"
                )
            self.tensors[name] = Stored(path, name, handle)

    def _add_shards(self, index: Path) -> None:
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict):
            raise CheckpointError(f"{index}: weight_map must be an object")
        for name, shard in places.items():
            if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
                raise CheckpointError(
                    f"{index}: {shard!r}, where tensor {name} should be, "
                    "is not the name of a safetensors file in this directory"
                )
        for shard in sorted(set(places.values())):
            if not index.with_name(shard).is_file():
                raise _missing(index.with_name(shard), f", which {index.name} names")
            self._add(index.with_name(shard))
        for name, shard in places.items():
            if name not in self.tensors or self.tensors[name].path.name != shard:
                raise CheckpointError(f"{index.with_name(shard)}: tensor {name} is missing")

    def require(self, expected: Mapping[str, Tensor], ignored: Collection[str] = ()) -> None:
        """Refuses unless the tensors are the expected ones, in name, shape and any float type."""
        for name, tensor in expected.items():
            if name not in self.tensors:
                raise CheckpointError(f"{self.path}: tensor {name} is missing")
            self.tensors[name].require(tensor.shape)
        for name in sorted(self.tensors.keys() - expected.keys() - set(ignored)):
            # older versions of transformers stored what they could compute
            if not name.endswith("rotary_emb.inv_freq"):
                raise CheckpointError(f"{self.tensors[name].path}: tensor {name} is not expected")

    def copy_into(self, targets: Mapping[str, Tensor]) -> None:
        """Fills the targets, in their own type; refuses what is not finite in it."""
        for name, target in targets.items():
            target.copy_(self.tensors[name].read())
            _require_finite(self.tensors[name].path, name, target)
