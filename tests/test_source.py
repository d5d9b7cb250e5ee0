"""Sources of training bytes: what is found, packed, split and refused."""

import gzip
import io
import lzma
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from train.data_files import DataError, DataFiles
from train.source import Packing, open_source

WHOLE = Packing(separator=None, by_file=False, validation_fraction=0.0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "below").mkdir(parents=True)
    (root / "b.txt").write_bytes(b"bbbb")
    (root / "a.txt").write_bytes(b"aa")
    (root / "below" / "c.txt.gz").write_bytes(gzip.compress(b"ccc"))
    (root / "below" / "d.xz").write_bytes(lzma.compress(b"dd\x00d"))
    with zipfile.ZipFile(root / "e.zip", "w") as archive:
        archive.writestr("two.txt", b"22")
        archive.writestr("one/one.txt", b"1")
    (root / ".hidden").write_bytes(b"never")
    return root


def encrypted_zip() -> bytes:
    """An archive that says of its file that it is encrypted: the flag is all that is looked at."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("secret.txt", b"secret")
    content = bytearray(out.getvalue())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def whole(argument: Path, cache: Path, packing: Packing = WHOLE, limit: int = 0) -> bytes:
    return open_source([str(argument)], packing, cache, limit)[0].tobytes()


def test_a_directory_is_all_its_files_in_a_fixed_order(tree: Path, tmp_path: Path) -> None:
    names = [path.name for path in DataFiles().expand(str(tree))]
    assert names == ["a.txt", "b.txt", "c.txt.gz", "d.xz", "e.zip"]
    assert whole(tree, tmp_path) == b"aabbbbcccdd\x00d122"


def test_a_separator_follows_each_document(tree: Path, tmp_path: Path) -> None:
    separated = Packing(separator=0, by_file=False, validation_fraction=0.0)
    assert whole(tree, tmp_path, separated) == b"aa\0bbbb\0ccc\0dd\0d\x001\x0022\0"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"aa"),
        ("below/c.txt.gz", b"ccc"),
        ("below/d.xz", b"dd\0d"),
        ("e.zip", b"122"),
        ("*.txt", b"aabbbb"),
        ("**/*.gz", b"ccc"),
    ],
)
def test_files_and_globs(tree: Path, tmp_path: Path, name: str, content: bytes) -> None:
    assert whole(tree / name, tmp_path) == content


def test_packing_is_done_once(tree: Path, tmp_path: Path) -> None:
    whole(tree, tmp_path / "cache")
    (first,) = (tmp_path / "cache").iterdir()
    stamp = first.stat().st_mtime_ns
    whole(tree, tmp_path / "cache")
    assert first.stat().st_mtime_ns == stamp
    (tree / "a.txt").write_bytes(b"changed")
    assert whole(tree, tmp_path / "cache").startswith(b"changed")


def test_splitting_by_fraction_takes_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(range(100)))
    packing = Packing(separator=None, by_file=False, validation_fraction=0.05)
    training, held_out = open_source([str(path)], packing, tmp_path)
    assert training.tobytes() == bytes(range(95))
    assert held_out.tobytes() == bytes(range(95, 100))
    limited = open_source([str(path)], packing, tmp_path, limit=40)
    assert [len(part) for part in limited] == [38, 2]


def test_splitting_by_file_keeps_files_whole_and_is_the_same_anywhere(tmp_path: Path) -> None:
    packing = Packing(separator=10, by_file=True, validation_fraction=0.3)
    parts = []
    for root in (tmp_path / "here", tmp_path / "there"):
        root.mkdir()
        for index in range(40):
            (root / f"file{index}").write_bytes(b"%d" % index)
        parts.append(open_source([str(root)], packing, root / ".cache"))
    (training, held_out), (again, held_again) = parts
    assert training.tobytes() == again.tobytes()
    assert held_out.tobytes() == held_again.tobytes()
    documents = training.tobytes().split() + held_out.tobytes().split()
    assert sorted(map(int, documents)) == list(range(40))
    assert 4 <= len(held_out.tobytes().split()) <= 20
    more = replace(packing, validation_fraction=0.9)  # of files that have been packed before
    assert len(open_source([str(root)], more, root / ".cache")[1]) > 2 * len(held_out)


def test_several_arguments_are_one_source_as_their_directory_would_be(
    tree: Path, tmp_path: Path
) -> None:
    arguments = [str(tree / name) for name in ("b.txt", "a.txt", "*.txt", "below")]
    separated = Packing(separator=0, by_file=False, validation_fraction=0.0)
    content = open_source(arguments, separated, tmp_path)[0].tobytes()
    # each file once, in the order in which it is named first
    assert content == b"bbbb\0aa\0ccc\0dd\0d\0"
    root = tmp_path / "many"
    root.mkdir()
    for index in range(40):
        (root / f"{index:02}").write_bytes(b"%d " % index)
    by_file = Packing(separator=None, by_file=True, validation_fraction=0.3)
    files = [str(path) for path in sorted(root.iterdir())]
    for part, other in zip(
        open_source(files, by_file, tmp_path / "here"),
        open_source([str(root)], by_file, tmp_path / "there"),
        strict=True,
    ):
        assert part.tobytes() == other.tobytes()


def test_what_cannot_be_read_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "locked.zip").write_bytes(encrypted_zip())
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gz").write_bytes(gzip.compress(bytes(5000))[:-9])
    (tmp_path / "broken.xz").write_bytes(lzma.compress(bytes(5000))[:-9])
    (tmp_path / "no.gz").write_bytes(b"not gzip at all")
    (tmp_path / "no.zip").write_bytes(b"not a zip at all")
    for name, message in (
        ("missing.bin", "no such file"),
        ("empty.bin", "is empty"),
        ("empty.gz", "is empty"),
        ("locked.zip", "cannot be read: File 'secret.txt' is encrypted"),
        ("empty", "no file matches"),
        ("*.none", "no file matches"),
        ("broken.gz", "not whole"),
        ("broken.xz", "not whole"),
        ("no.gz", "not whole"),
        ("no.zip", "not whole"),
    ):
        with pytest.raises(DataError) as error:
            whole(tmp_path / name, tmp_path / "cache")
        assert name in str(error.value)
        assert message in str(error.value)
        assert "cache" not in str(error.value)
    empties = [str(tmp_path / name) for name in ("empty.bin", "empty.gz")]
    with pytest.raises(DataError, match=r"empty\.bin and 1 more: is empty"):
        open_source(empties, replace(WHOLE, separator=0), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial"))
    by_file = Packing(separator=None, by_file=True, validation_fraction=0.5)
    with pytest.raises(DataError, match="one file cannot be split by file"):
        whole(tree / "a.txt", tmp_path, by_file)
    by_file = Packing(separator=None, by_file=True, validation_fraction=0.0)
    with pytest.raises(DataError, match="leaves none for validation"):
        whole(tree, tmp_path, by_file)


def test_files_that_cannot_be_opened_are_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **more: Any) -> IO[Any]:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)

    def refuse_all(*arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("numpy.memmap", refuse_all)
    for name in ("", "b.txt"):  # packed, then mapped
        with pytest.raises(DataError, match=r"b\.txt: cannot be read: Permission denied"):
            whole(tree / name, tmp_path)


def test_a_place_that_cannot_be_written_is_told_from_a_source_that_cannot_be_read(
    tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/.*\.bin: cannot be written: File exists"):
        whole(tree, tmp_path / "file")
