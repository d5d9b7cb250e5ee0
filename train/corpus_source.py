"""The pinned list of source packages: read it, check it, and find each archive on disk.

What this does not know: whether the licence named in the list is the one the package carries;
whoever adds a source looks that up, for its documentation separately from its code.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERMITTED = frozenset(
    (
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC"),
        *("MIT", "MIT-0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    )
)
FIELDS = ("name", "version", "kind", "sha256", "license")
KINDS = ("sdist", "wheel")
CLASSES = ("prose", "code")


class CorpusError(ValueError):
    """A mistake the person at the keyboard can mend."""


@dataclass(frozen=True)
class Source:
    """One pinned archive and the globs of what is taken from it (``*`` also crosses ``/``)."""

    name: str
    version: str
    kind: str
    sha256: str
    license: str
    take: Mapping[str, tuple[str, ...]]


def read_sources(path: Path) -> list[Source]:
    """The sources of the list, in its order."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorpusError(f"{path.name}: cannot be read: {error}") from error
    _refuse_unknown(path.name, table, ("source",))
    entries = table.get("source")
    if not isinstance(entries, list) or not entries:
        raise CorpusError(f"{path.name}: no [[source]] in it")
    sources = [_source(f"{path.name}, source {n}", entry) for n, entry in enumerate(entries, 1)]
    names = [normal(source.name) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise CorpusError(f"{path.name}: {name} is listed more than once")
    return sources


def _refuse_unknown(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for field in table:
        if field not in known:
            raise CorpusError(f"{where}: unknown field {field!r}; known: {', '.join(known)}")


def _source(where: str, entry: Any) -> Source:
    if not isinstance(entry, dict):
        raise CorpusError(f"{where}: not a table")
    where = f"{where} ({entry.get('name', 'no name')})"
    _refuse_unknown(where, entry, (*FIELDS, "take"))
    for field in FIELDS:
        if not isinstance(entry.get(field), str) or not entry[field]:
            raise CorpusError(f"{where}: {field} must be a non-empty string")
    if entry["kind"] not in KINDS:
        raise CorpusError(f"{where}: kind must be one of {', '.join(KINDS)}")
    if not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        raise CorpusError(f"{where}: sha256 must be 64 lower-case hexadecimal digits")
    for part in re.split(r" (?:OR|AND) ", entry["license"]):
        if part not in PERMITTED:
            raise CorpusError(f"{where}: license {part!r} is not among the permitted ones")
    take = entry.get("take")
    if not isinstance(take, dict) or not take:
        raise CorpusError(f"{where}: take must name globs for prose, code or both")
    _refuse_unknown(f"{where}: take", take, CLASSES)
    for globs in take.values():
        if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
            raise CorpusError(f"{where}: take must hold lists of globs")
    globs_of = {kind: tuple(take.get(kind, ())) for kind in CLASSES}
    return Source(**{field: entry[field] for field in FIELDS}, take=globs_of)


def normal(name: str) -> str:
    """Archive names are spelt with ``-``, ``_`` or ``.`` and any case: make them comparable."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_archive(source: Source, folder: Path) -> Path | None:
    """The archive of this source in the folder; None if absent; an error if only others are."""
    wanted = normal(f"{source.name}-{source.version}")
    named = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        stem = path.name
        if source.kind == "wheel" and stem.endswith(".whl"):
            stem = "-".join(stem.split("-")[:2])
        elif source.kind == "sdist" and stem.endswith((".tar.gz", ".tgz", ".zip")):
            stem = re.sub(r"\.(tar\.gz|tgz|zip)$", "", stem)
        else:
            continue
        if normal(stem) == wanted:
            named.append(path)
    for path in named:
        with path.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() == source.sha256:
                return path
    if named:
        found = ", ".join(path.name for path in named)
        raise CorpusError(
            f"{source.name} {source.version}: {found} does not have the pinned sha256 "
            f"{source.sha256}; delete the file to have it fetched again"
        )
    return None
