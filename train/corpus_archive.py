"""Read text members of source archives (.tar.gz, .tgz, .zip, .whl) in memory.

Nothing is ever written to disk and no link is followed: a member is a plain file with a plain
relative name, or it is passed over. The leading folder of a source archive (``name-version/``)
is not part of the path that is reported.

What this does not know: whether the content is text, or whose it is.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# RuntimeError is what zipfile raises for an encrypted member or an unknown compression.
DAMAGE = (EOFError, OSError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class ArchiveError(ValueError):
    """The archive is damaged or of a kind that is not read here."""


def plain_path(name: str) -> str | None:
    """The member name if it is a safe relative path, else None."""
    path = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or ":" in name:
        return None
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        return None
    return name


def read_members(archive: Path, low: int, high: int) -> Iterator[tuple[str, bytes]]:
    """Each plain file of ``low`` to ``high`` bytes: path inside the package, content."""
    suffix = archive.name.lower()
    try:
        if suffix.endswith((".tar.gz", ".tgz")):
            yield from _read_tar(archive, low, high)
        elif suffix.endswith(".whl"):
            yield from _read_zip(archive, low, high, strip=False)
        elif suffix.endswith(".zip"):
            yield from _read_zip(archive, low, high, strip=True)
        else:
            raise ArchiveError(f"{archive.name}: not a .tar.gz, .zip or .whl archive")
    except DAMAGE as error:
        raise ArchiveError(f"{archive.name}: cannot be read: {error}") from error


def _without_top(path: str) -> str | None:
    return path.partition("/")[2] or None


def _read_tar(archive: Path, low: int, high: int) -> Iterator[tuple[str, bytes]]:
    # Streaming ("r|gz") reads the archive once, forwards: no seeking back through gzip.
    with tarfile.open(archive, "r|gz") as bundle:
        for member in bundle:
            path = plain_path(member.name.removeprefix("./"))
            inside = _without_top(path) if path else None
            if inside is None or not member.isreg() or not low <= member.size <= high:
                continue
            handle = bundle.extractfile(member)
            if handle is not None:
                yield inside, handle.read()


def _read_zip(archive: Path, low: int, high: int, *, strip: bool) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            path = plain_path(member.filename)
            inside = _without_top(path) if path and strip else path
            # The upper half of external_attr is the Unix mode; 0o12 in its top digits is a link.
            is_link = (member.external_attr >> 28) == 0o12
            if inside is None or is_link or member.is_dir():
                continue
            if low <= member.file_size <= high:
                yield inside, bundle.read(member)
