"""What the data files of a run are, by size and sha256, so that a resumed run can tell a change.

Where they lie does not count.  A file that has the path, size and time that it had is taken to be
what it was: a digest is made once, not at each start.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os.path import commonpath
from pathlib import Path

from train.data_files import READ, DataError, naming_unreadable, some


@dataclass(frozen=True)
class Entry:
    """A file of one part of the data; `part` is the flag that named it."""

    part: str
    path: str
    size: int
    mtime_ns: int
    sha256: str

    def identity(self, by_file: bool) -> tuple[str, str, str]:
        """What training sees of it: bytes, how they are unpacked, and the name where that decides
        who goes to validation."""
        path = Path(self.path)
        suffix = path.suffix.lower()
        return self.sha256, suffix if suffix in READ else "", path.name if by_file else ""


def take_inventory(files: Mapping[str, Sequence[Path]], known: Sequence[Entry] = ()) -> list[Entry]:
    before = {(file.path, file.size, file.mtime_ns): file.sha256 for file in known}
    taken = []
    for part, paths in files.items():
        for path in paths:
            with naming_unreadable(path):
                facts = path.stat()
                key = (str(path.absolute()), facts.st_size, facts.st_mtime_ns)
                digest = before.get(key) or _digest(path)
            taken.append(Entry(part, *key, digest))
    return taken


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same(before: Sequence[Entry], now: Sequence[Entry], by_file: bool) -> None:
    """DataError with the names of files that have changed, or are missing or new."""
    differences = []
    for part in dict.fromkeys(file.part for file in (*before, *now)):
        old, new = ([f for f in files if f.part == part] for files in (before, now))
        seen = [[file.identity(by_file) for file in files] for files in (old, new)]
        if seen[0] != seen[1]:
            differences.append(f"{part}: {_difference(old, new)}")
    if differences:
        raise DataError(
            f"{'; '.join(differences)}; put back the data that the run began with, or give "
            "another --out"
        )


def _difference(old: Sequence[Entry], new: Sequence[Entry]) -> str:
    before, now = _by_name(old, new), _by_name(new, old)
    changed = [name for name in before.keys() & now.keys() if before[name] != now[name]]
    parts = [
        f"{what}: {some(sorted(names))}"
        for what, names in (
            ("changed since the run began", changed),
            ("missing since the run began", before.keys() - now.keys()),
            ("new since the run began", now.keys() - before.keys()),
        )
        if names
    ]
    return "; ".join(parts) or "the files come in another order than when the run began"


def _by_name(files: Sequence[Entry], others: Sequence[Entry]) -> dict[str, str]:
    """Digests by path; where all lie elsewhere than the others by path below their directory."""
    paths = {file.path for file in files}
    if not (files and others) or paths & {file.path for file in others}:
        return {file.path: file.sha256 for file in files}
    root = commonpath([str(Path(file.path).parent) for file in files])
    return {str(Path(file.path).relative_to(root)): file.sha256 for file in files}


def to_json(files: Sequence[Entry]) -> str:
    return json.dumps([asdict(file) for file in files])


def from_json(text: str) -> list[Entry]:
    return [Entry(**record) for record in json.loads(text)]
