"""Which files an argument names: a file, all of a directory that is data, or what a glob matches.

A directory is walked without what is no text or bytes of the user's: hidden files, the run that
reads it, other runs and checkpoints, kinds of files that hold weights, pictures, programs or
archives that are not read.  What is left out is kept, to be told.  A file that is named is taken as
it is, unless it is compressed in a way that is not read, which is refused.  Knows no contents but
the first bytes of a file.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path

READ = (".gz", ".bz2", ".xz", ".zip")
"""Suffixes that are unpacked, in either case."""

COMPRESSED = {".7z", ".br", ".lz", ".lz4", ".lzma", ".lzo", ".rar", ".z", ".zst", ".zstd"}
TAR = {".tar", ".taz", ".tbz", ".tbz2", ".tgz", ".tlz", ".txz", ".tzst"}
UNREAD = frozenset(COMPRESSED | TAR)
"""Suffixes of what is compressed, or an archive, and not unpacked."""

MAGIC = (
    (0, b"\x1f\x8b\x08", "gzip"),
    (4, b"1AY&SY", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (257, b"ustar", "tar"),
)
"""What compressed files and archives have at which place."""
HEAD_BYTES = 512

WEIGHTS = {".safetensors", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".npy", ".npz"}
PROGRAMS = {".a", ".class", ".dll", ".dylib", ".exe", ".o", ".pickle", ".pkl", ".pyc", ".so"}
PICTURES = {".bmp", ".gif", ".ico", ".jpeg", ".jpg", ".pdf", ".png", ".tif", ".tiff", ".webp"}
SOUND = {".avi", ".flac", ".mkv", ".mov", ".mp3", ".mp4", ".ogg", ".wav", ".webm"}
FONTS = {".ttf", ".woff", ".woff2"}
NO_DATA = frozenset(WEIGHTS | PROGRAMS | PICTURES | SOUND | FONTS)
"""Suffixes that a directory is walked without."""

RUN_FILES = (
    *("last.pt", "best.pt", "curve.csv", "curve.png", "demonstrations.log"),
    *("data", "checkpoint", "tensorboard"),
)
"""What a run writes into its directory."""

SHOWN = 3


class DataError(ValueError):
    """The data cannot be trained on; the message names the file or argument."""


class DataFiles:
    """Files of arguments; what was left out is kept under the reason for it.

    `run` is the directory of the run that reads: it is left out whole where it lies below what is
    named, and what it writes into it is never read.  `own` are further files that are not.
    """

    def __init__(self, run: Path | None = None, own: Sequence[Path] = ()) -> None:
        self.run = run.resolve() if run else None
        self.own = [path.resolve() for path in own]
        if self.run:
            self.own += [self.run / name for name in RUN_FILES]
        self.left_out: dict[str, dict[Path, None]] = {}
        self._found: dict[str, list[Path]] = {}

    def of(self, arguments: Sequence[str]) -> list[Path]:
        """Files of all arguments in their order, each once."""
        return list(dict.fromkeys(path for each in arguments for path in self.expand(each)))

    def expand(self, argument: str) -> list[Path]:
        """The files of one argument, in a fixed order."""
        if argument not in self._found:
            with naming_unreadable(Path(argument)):
                self._found[argument] = self._expand(argument)
        return self._found[argument]

    def told(self) -> str:
        """One line of what was left out and why; empty where nothing was."""
        parts = [f"{len(paths)} {why} ({some(paths)})" for why, paths in self.left_out.items()]
        return f"left out of the data: {', '.join(parts)}" if parts else ""

    def _expand(self, argument: str) -> list[Path]:
        path = Path(argument)
        if path.exists() or path.is_symlink():
            if self._is_own(path) or path.resolve() == self.run:
                raise DataError(f"{argument}: is of this run itself; give --out another directory")
            if path.is_file():
                require_unpacked(path)
                return [path]
            if not path.is_dir():
                raise DataError(f"{argument}: is neither a file nor a directory")
            found = sorted(self._walk(path))
        elif has_magic(argument):
            found = sorted(self._matches(path))
        else:
            raise DataError(f"{argument}: no such file")
        if not found:
            told = self.told()
            raise DataError(f"{argument}: no file matches{f'; {told}' if told else ''}")
        return found

    def _is_own(self, path: Path) -> bool:
        real = path.resolve()
        return any(real.is_relative_to(own) for own in self.own)

    def _matches(self, pattern: Path) -> Iterator[Path]:
        """Of a pattern, whose leading parts are names as far as there are such directories."""
        # a directory's name may have the characters of a pattern
        root = next(parent for parent in pattern.parents if parent.is_dir())
        within = self.run is not None and root.resolve().is_relative_to(self.run)
        for name in glob(str(pattern.relative_to(root)), root_dir=root, recursive=True):  # noqa: PTH207
            path = root / name
            if not path.is_file():
                continue
            of_run = self.run and not within and path.resolve().is_relative_to(self.run)
            if of_run or self._is_own(path):
                self._leave_out("of this run", path)
            else:
                require_unpacked(path)
                yield path

    def _walk(self, root: Path) -> Iterator[Path]:
        def refuse(error: OSError) -> None:
            raise error

        for folder, below, names in os.walk(root, onerror=refuse):
            here = Path(folder)
            if here != root and _written_by_training(names):
                self._leave_out("a run or checkpoint", here)
                below.clear()
                continue
            for name in sorted(below):
                why = self._why_not_enter(here / name)
                if why:
                    self._leave_out(why, here / name)
                    below.remove(name)
            real = here.resolve()
            for name in sorted(names):
                own = real / name in self.own
                why = "of this run" if own else _why_not_take(here / name)
                if why:
                    self._leave_out(why, here / name)
                else:
                    yield here / name

    def _why_not_enter(self, folder: Path) -> str:
        if folder.name.startswith("."):
            return "hidden"
        if folder.resolve() == self.run or self._is_own(folder):
            return "of this run"
        return "linked" if folder.is_symlink() else ""

    def _leave_out(self, why: str, path: Path) -> None:
        self.left_out.setdefault(why, {})[path] = None


def some(paths: Iterable[object]) -> str:
    """The first names of many."""
    names = [str(path) for path in paths]
    return ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)


def _why_not_take(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "no regular file"
    if path.suffix.lower() in NO_DATA:
        return "weights, programs or media"
    return "compressed in a way that is not read" if _packed_as(path) else ""


def _written_by_training(names: Sequence[str]) -> bool:
    there = set(names)
    return bool(
        there & {"last.pt", "best.pt", "prophet_config.json"}
        or ("config.json" in there and any(name.endswith(".safetensors") for name in there))
    )


def compression(head: bytes) -> str:
    """What compressed the bytes that begin like this, empty where nothing did."""
    return next((kind for at, mark, kind in MAGIC if head.startswith(mark, at)), "")


def require_unpacked(path: Path) -> None:
    """DataError for a file that is compressed otherwise than its suffix says, or not read."""
    kind = _packed_as(path)
    if kind:
        raise DataError(f"{path}: is {kind}, which is not read: unpack it and name what it holds")


def _packed_as(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in READ:
        return "".join(suffixes) if suffixes[0] in UNREAD else ""
    if suffixes and suffixes[-1] in UNREAD:
        return suffixes[-1]
    with naming_unreadable(path), path.open("rb") as file:
        kind = compression(file.read(HEAD_BYTES))
    return f"{kind} by its first bytes, but not by its name" if kind else ""


@contextmanager
def naming_unreadable(path: Path) -> Iterator[None]:
    """Names the file that cannot be read."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else path
        raise DataError(f"{named}: cannot be read: {error.strerror or error}") from None
