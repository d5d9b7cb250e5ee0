"""Bytes to train on: files, mixed by weight, cut into random windows.

What is drawn for a step depends on the seed and the step alone, so that a resumed run sees the
bytes that an unbroken one would have seen.  Does not know documents: a window may span several.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]


class DataError(ValueError):
    """The data cannot be trained on; the message names the file."""


def read_bytes(path: str) -> Bytes:
    """The bytes of a plain (memory-mapped) or .gz file."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file")
    if file.stat().st_size == 0:
        raise DataError(f"{path}: is empty")
    if file.suffix == ".gz":
        try:
            return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: is not whole gzip: {error}") from None
    return np.memmap(file, np.uint8, mode="r")


@dataclass(frozen=True)
class Sample:
    """One named stretch of bytes."""

    name: str
    content: Bytes

    def windows(self, starts: NDArray[np.int64], length: int) -> Tensor:
        """int64 [len(starts), length]."""
        return torch.from_numpy(
            np.stack([self.content[i : i + length] for i in starts]).astype(np.int64)
        )


@dataclass(frozen=True)
class Corpus:
    """Training and validation samples; `weights` are the shares of the training windows."""

    training: tuple[Sample, ...]
    weights: tuple[float, ...]
    validation: tuple[Sample, ...]

    @classmethod
    def open(
        cls,
        data: tuple[str, ...],
        mix: tuple[float, ...],
        validation: tuple[str, ...],
        fraction: float,
        window: int,
    ) -> "Corpus":
        """Opens the files; without validation files the end of each data file is kept for it."""
        if not data:
            raise DataError("data: give at least one file")
        training, held_out = [], []
        for path in data:
            content = read_bytes(path)
            cut = len(content) if validation else int(len(content) * (1 - fraction))
            training.append(Sample(Path(path).name, content[:cut]))
            held_out.append(Sample(Path(path).name, content[cut:]))
        if validation:
            held_out = [Sample(Path(path).name, read_bytes(path)) for path in validation]
        for part, samples in (("training", training), ("validation", held_out)):
            for sample in samples:
                if len(sample.content) < window + 1:
                    raise DataError(
                        f"{sample.name}: {len(sample.content)} bytes for {part} are fewer than "
                        f"one window of {window}"
                    )
        shares = np.array(mix or [len(sample.content) for sample in training], float)
        shares /= shares.sum()
        return cls(tuple(training), tuple(shares.tolist()), tuple(held_out))

    def batch(self, seed: int, step: int, rows: int, length: int) -> Tensor:
        """int64 [rows, length] of random windows, a function of seed and step."""
        draw = np.random.default_rng((seed, step))
        chosen = draw.choice(len(self.training), rows, p=self.weights)
        parts = []
        for index in chosen:
            sample = self.training[index]
            start = draw.integers(0, len(sample.content) - length, size=1)
            parts.append(sample.windows(start, length))
        return torch.cat(parts)

    def validation_rows(self, sample: Sample, total: int, length: int) -> Tensor:
        """int64 [rows, length]: evenly spread windows of at most `total` bytes."""
        rows = max(1, min(total, len(sample.content)) // length)
        starts = np.linspace(0, len(sample.content) - length, rows).astype(np.int64)
        return sample.windows(starts, length)
