"""Training bytes of a source: its files in one stretch; plain, .gz, .bz2, .xz and .zip.

A source has one argument of `--data` or several; `train.data_files` knows which files they name.
A single plain file is memory-mapped where it lies; anything else is packed once into a file beside
the run, which is then memory-mapped, so that a set larger than memory can be trained on.  Each
file, and each member of a .zip, is one document.  Knows nothing of windows or batches.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from train.data_files import HEAD_BYTES, READ, DataError, DataFiles, compression, naming_unreadable

Bytes = NDArray[np.uint8]

CHUNK = 1 << 20

COMPRESSED: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.open(path)),  # noqa: SIM115 - closed by `_pack`
    ".bz2": lambda path: bz2.open(path),  # noqa: SIM115
    ".xz": lambda path: lzma.open(path),  # noqa: SIM115
}


@dataclass(frozen=True)
class Packing:
    """How documents become one stretch of bytes.

    `separator` is written behind each document, None for nothing.  `by_file` sends whole files to
    validation, a share of `validation_fraction` chosen by their names; otherwise the last share of
    the bytes goes there.
    """

    separator: int | None
    by_file: bool
    validation_fraction: float


def open_source(
    arguments: Sequence[str],
    packing: Packing,
    cache: Path,
    limit: int = 0,
    found: DataFiles | None = None,
) -> tuple[Bytes, Bytes]:
    """(training, validation) bytes of the arguments in their order; the second may be empty.

    A file that several arguments name is taken once.  Of a source that is split by fraction only
    the first `limit` bytes are taken, where not 0.
    """
    files = (found or DataFiles()).of(arguments)
    name = source_name(arguments)
    if len(files) == 1 and files[0].suffix.lower() not in READ:
        if packing.by_file:
            raise DataError(f"{name}: one file cannot be split by file; split by fraction")
        return _cut(_mapped(files[0]), packing.validation_fraction, limit)
    by_file = packing.by_file and packing.validation_fraction
    key = hashlib.sha256(repr((packing.separator, by_file)).encode())
    for path in files:
        with _reading(path):
            facts = path.stat()
        key.update(repr((str(path.resolve()), facts.st_size, facts.st_mtime_ns)).encode())
    packed = cache / f"{key.hexdigest()[:16]}.bin"
    if not packing.by_file:
        if not packed.exists():
            _pack(name, files, packing.separator, packed)
        return _cut(_mapped(packed), packing.validation_fraction, limit)
    held_out = [path for path in files if _chosen(path.name, packing.validation_fraction)]
    rest = [path for path in files if path not in set(held_out)]
    if not rest or not held_out:
        raise DataError(
            f"{name}: splitting {len(files)} files by file leaves none for "
            f"{'validation' if rest else 'training'}"
        )
    parts = []
    for part_name, members in (("train", rest), ("valid", held_out)):
        part = packed.with_suffix(f".{part_name}.bin")
        if not part.exists():
            _pack(f"{name} ({part_name})", members, packing.separator, part)
        parts.append(_mapped(part))
    return parts[0], parts[1]


def source_name(arguments: Sequence[str]) -> str:
    """What errors call a source: its argument, or the first of several."""
    more = len(arguments) - 1
    return f"{arguments[0]} and {more} more" if more else arguments[0]


def _cut(content: Bytes, fraction: float, limit: int) -> tuple[Bytes, Bytes]:
    content = content[: limit or len(content)]
    cut = len(content) - int(len(content) * fraction)
    return content[:cut], content[cut:]


def _chosen(name: str, fraction: float) -> bool:
    """Whether a file's name falls into the validation share, the same on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _mapped(path: Path) -> Bytes:
    with _reading(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty")
        return np.memmap(path, np.uint8, mode="r")


def _pack(name: str, files: list[Path], separator: int | None, target: Path) -> None:
    """Writes all documents into one file, which appears whole or not at all."""
    # another run or machine may pack the same files at this moment
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            for path in files:
                for document_name, document in _documents(path):
                    with document as content:
                        begin = out.tell()
                        while chunk := _read(content, path):
                            if out.tell() == begin:
                                _require_unpacked(document_name, chunk)
                            out.write(chunk)
                    if separator is not None and out.tell() > begin:
                        out.write(bytes([separator]))
            if not out.tell():
                raise DataError(f"{name}: is empty")
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _require_unpacked(name: str, begin: bytes) -> None:
    kind = compression(begin[:HEAD_BYTES])
    if kind:
        raise DataError(f"{name}: holds {kind}, which is not read inside another: unpack it")


def _documents(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if path.suffix.lower() == ".zip":
        with _reading(path):
            archive = zipfile.ZipFile(path)
        with archive:
            for member in sorted(archive.namelist()):
                if not member.endswith("/"):
                    with _reading(path):
                        document = archive.open(member)
                    yield f"{path}: {member}", document
    else:
        with _reading(path):
            plain = COMPRESSED.get(path.suffix.lower(), lambda plain: plain.open("rb"))(path)
        yield str(path), plain


def _read(content: IO[bytes], path: Path) -> bytes:
    with _reading(path):
        return content.read(CHUNK)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file that cannot be read, or whose compression turns out broken."""
    broken = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)
    with naming_unreadable(path):
        try:
            yield
        except broken as error:
            raise DataError(f"{path}: is not whole: {error}") from None
        except RuntimeError as error:  # zipfile's words for what is encrypted or packed otherwise
            raise DataError(f"{path}: cannot be read: {error}") from None
