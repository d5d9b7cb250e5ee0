"""Windows of bytes to train and validate on.

What is drawn for a step depends on the seed and the step alone, so that a resumed run sees the
bytes that an unbroken one would have seen.  Windows lie anywhere: one may span several documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data_files import DataError, DataFiles
from train.source import Bytes, Packing, open_source, source_name


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

    def spread(self, total: int, length: int) -> Tensor:
        """int64 [rows, length]: evenly spread windows of at most `total` bytes together."""
        rows = max(1, min(total, len(self.content)) // length)
        starts = np.linspace(0, len(self.content) - length, rows).astype(np.int64)
        return self.windows(starts, length)


@dataclass(frozen=True)
class Corpus:
    """Training, validation and test samples; `weights` are the shares of the training windows.

    `files` are those of the first two, by the flag that names them and for each source.
    """

    training: tuple[Sample, ...]
    weights: tuple[float, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        data: tuple[tuple[str, ...], ...],
        mix: tuple[float, ...],
        validation: tuple[str, ...],
        packing: Packing,
        window: int,
        cache: Path,
        limit: int = 0,
        test: tuple[str, ...] = (),
        found: DataFiles | None = None,
    ) -> "Corpus":
        """Opens the sources of `data`, each given by one path or several.

        Without `validation` paths a part of each source is kept for it; without `test` paths the
        validation samples serve for both.  Each of those paths is a sample of its own.

        DataError where a part is shorter than one window.
        """
        if not data or not all(data):
            raise DataError("--data: give at least one file, directory or glob")
        found = found or DataFiles()
        whole = Packing(packing.separator, by_file=False, validation_fraction=0.0)
        training, held_out = [], []
        for name, paths in zip(_names(data), data, strict=True):
            kept, left = open_source(paths, whole if validation else packing, cache, limit, found)
            training.append(Sample(name, kept))
            held_out.append(Sample(name, left))
        if validation:
            held_out = _samples(validation, whole, cache, found)
        tests = _samples(test, whole, cache, found) or held_out
        parts = (("training", training), ("validation", held_out), ("test", tests))
        for part, samples in parts:
            for sample in samples:
                if len(sample.content) < window + 1:
                    raise DataError(
                        f"{sample.name}: {len(sample.content)} bytes for {part} are fewer than "
                        f"one window of {window}"
                    )
        shares = np.array(mix or [len(sample.content) for sample in training], float)
        shares /= shares.sum()
        files = {
            f"--{part} ({index})" if len(sources) > 1 else f"--{part}": found.of(paths)
            for part, sources in (("data", data), ("validation", [(path,) for path in validation]))
            for index, paths in enumerate(sources, 1)
        }
        return cls(tuple(training), tuple(shares.tolist()), tuple(held_out), tuple(tests), files)

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


def _samples(
    paths: tuple[str, ...], packing: Packing, cache: Path, found: DataFiles
) -> list[Sample]:
    names = _names([(path,) for path in paths])
    parts = [open_source((path,), packing, cache, found=found)[0] for path in paths]
    return [Sample(name, part) for name, part in zip(names, parts, strict=True)]


def _names(sources: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each: that of its file, with as much of the paths of all as tells them apart."""
    different = list(dict.fromkeys(sources))  # what is named twice is the same
    longest = max((len(Path(paths[0]).parts) for paths in different), default=0)
    names: list[str] = []
    for parts in range(1, longest + 1):
        names = [source_name([_end(path, parts) for path in paths]) for paths in different]
        if len(set(names)) == len(names):
            break
    return [names[different.index(paths)] for paths in sources]


def _end(path: str, parts: int) -> str:
    return str(Path(*Path(path).parts[-parts:]))
