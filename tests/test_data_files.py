"""Which files are taken as data: what a directory is walked without, globs, what is compressed."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from runs import TINY, command, refusal, run, write_words

from train.data_files import DataError, DataFiles
from train.samples import main as samples
from train.source import Packing, open_source

WHOLE = Packing(separator=None, by_file=False, validation_fraction=0.0)
TEXT = b"words of mine " * 40
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(60)


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("words.txt")
        info.size = len(TEXT)
        file.addfile(info, io.BytesIO(TEXT))
    return out.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, content)
    return out.getvalue()


def names(found: DataFiles, argument: Path) -> list[str]:
    return [path.name for path in found.expand(str(argument))]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with texts, a run in it, another run, a checkpoint and what else lies about."""
    for name in (
        *("a.txt", "b.log", "notes/c.md", ".env", ".git/objects/pack", "model.safetensors"),
        *("cache/m.pyc", "plot.PNG", "runs/mine/last.pt", "runs/mine/curve.csv"),
        *("runs/mine/data/0.bin", "runs/mine/checkpoint/config.json", "runs/mine/stdout.txt"),
        *("runs/other/best.pt", "runs/other/data/1.bin"),
        *("checkpoints/one/config.json", "checkpoints/one/model.safetensors"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TEXT)
    (tmp_path / "old.tar.gz").write_bytes(gzip.compress(archive()))
    (tmp_path / "report.docx").write_bytes(zipped("word/document.xml", TEXT))
    (tmp_path / "away").symlink_to(tmp_path / "notes")
    return tmp_path


def test_a_directory_is_walked_without_what_is_no_data(project: Path) -> None:
    found = DataFiles(project / "runs" / "mine")
    assert names(found, project) == ["a.txt", "b.log", "c.md"]
    told = found.told()
    for part in (
        f"2 hidden ({project}/.git, {project}/.env)",
        f"1 linked ({project}/away)",
        f"1 of this run ({project}/runs/mine)",
        f"2 a run or checkpoint ({project}/checkpoints/one, {project}/runs/other)",
        f"3 weights, programs or media ({project}/model.safetensors, {project}/plot.PNG, ",
        "2 compressed in a way that is not read (",
    ):
        assert part in told
    assert "\n" not in told
    assert DataFiles().told() == ""


def test_what_is_named_is_taken_as_it_is(project: Path) -> None:
    found = DataFiles(project / "runs" / "mine")
    assert names(found, project / "model.safetensors") == ["model.safetensors"]
    assert names(found, project / "*.PNG") == ["plot.PNG"]
    assert names(found, project / ".env") == [".env"]
    assert not found.told()


def test_what_the_run_writes_is_never_read(project: Path) -> None:
    mine = project / "runs" / "mine"
    found = DataFiles(mine)
    for name in ("", "last.pt", "data", "data/0.bin", "checkpoint/config.json"):
        with pytest.raises(DataError, match=r"is of this run itself; give --out another dir"):
            found.expand(str(mine / name))
    (project / "link").symlink_to(mine / "data" / "0.bin")
    with pytest.raises(DataError, match="link: is of this run itself"):
        found.expand(str(project / "link"))
    assert names(found, project / "**" / "*.txt") == ["a.txt"]
    assert found.told() == f"left out of the data: 1 of this run ({mine}/stdout.txt)"
    # where data lie beside what the run writes they are taken
    here = DataFiles(project)
    (project / "data").mkdir()
    (project / "data" / "0.txt").write_bytes(TEXT)
    assert names(here, project / "a.txt") == ["a.txt"]
    # a glob follows links, as the shell does
    assert names(here, project / "*" / "*.*") == ["c.md", "m.pyc", "c.md"]


def test_a_run_inside_its_data_does_not_train_on_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as one types it, begun, resumed and with the default output."""
    monkeypatch.chdir(tmp_path)
    write_words(Path("words.txt"))
    (tmp_path / "more.txt").write_bytes(TEXT)
    given = ["--data", ".", *TINY, "--steps", 3, "--max-steps", 1]
    for _ in range(2):
        run(*given)
        assert len(list(Path("runs/default/data").iterdir())) == 1
    (packed,) = Path("runs/default/data").iterdir()
    assert packed.read_bytes() == Path("more.txt").read_bytes() + Path("words.txt").read_bytes()
    assert (
        f"left out of the data: 1 of this run ({tmp_path}/runs/default)" in capsys.readouterr().out
    )
    said = refusal(capsys, *given, "--out", ".")
    assert said.endswith("is of this run itself; give --out another directory")


def test_samples_are_not_taken_as_prompts_of_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.bin"
    out.write_bytes(TEXT)
    given = ["--checkpoint", str(tmp_path), "--data", str(out), "--out", str(out)]
    assert samples(given) == 1
    assert "samples.bin: is of this run itself" in capsys.readouterr().err
    assert samples([*given[:2], "--data", str(tmp_path), "--out", str(out)]) == 1
    assert "no file matches; left out of the data: 1 of this run" in capsys.readouterr().err


@pytest.mark.parametrize("directory", ["plain", "[x]", "a*b?", "with [two] spaces", "[!x]"])
def test_globs_are_relative_to_a_directory_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    from train.config import TrainConfig

    here = tmp_path / directory
    (here / "below [1]").mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in ("a.txt", "b.txt", "[a].txt", "below [1]/c.txt"):
        Path(name).write_bytes(name.encode())
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "wrong.txt").write_bytes(b"wrong")

    def found(argument: str) -> list[str]:
        (absolute,) = TrainConfig(data=(argument,)).with_absolute_paths().data
        return [str(path.relative_to(here)) for path in DataFiles().expand(absolute)]

    assert found("*.txt") == ["[a].txt", "a.txt", "b.txt"]
    assert found("[ab].txt") == ["a.txt", "b.txt"]
    # of a name that exists the characters are its own
    assert found("[a].txt") == ["[a].txt"]
    assert found("below [1]/*.txt") == ["below [1]/c.txt"]
    assert found("**/c.*") == ["below [1]/c.txt"]
    assert found(".") == ["[a].txt", "a.txt", "b.txt", "below [1]/c.txt"]
    with pytest.raises(DataError, match="no file matches"):
        found("*.none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("words.GZ", gzip.compress(TEXT)),
        ("words.Gz", gzip.compress(TEXT)),
        ("words.bz2", bz2.compress(TEXT)),
        ("words.BZ2", bz2.compress(TEXT)),
        ("words.XZ", lzma.compress(TEXT)),
        ("words.ZIP", zipped("words.txt", TEXT)),
        ("BZhang.txt", TEXT),
        ("words.tar.txt", TEXT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_compressed_files_are_read_whatever_the_case_of_their_names(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert open_source([str(tmp_path / name)], WHOLE, tmp_path / "c")[0].tobytes() == TEXT


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zst", ZSTD, r"a\.zst: is \.zst, which is not read: unpack it"),
        ("a.ZST", TEXT, r"a\.ZST: is \.zst, which is not read"),
        ("a.tgz", gzip.compress(archive()), r"is \.tgz, which is not read"),
        ("a.TGZ", gzip.compress(archive()), r"is \.tgz, which is not read"),
        ("a.tar", archive(), r"is \.tar, which is not read"),
        ("a.tar.gz", gzip.compress(archive()), r"is \.tar\.gz, which is not read"),
        ("a.Tar.Bz2", bz2.compress(archive()), r"is \.tar\.bz2, which is not read"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", r"is \.7z, which is not read"),
        ("a.rar", b"Rar!\x1a\x07\x00", r"is \.rar, which is not read"),
        ("a.lz4", TEXT, r"is \.lz4, which is not read"),
        *(
            (name, content, f"{name}: is {kind} by its first bytes, but not by its name")
            for name, content, kind in (
                ("plain", gzip.compress(TEXT), "gzip"),
                ("a.txt", bz2.compress(TEXT), "bzip2"),
                ("a.bin", lzma.compress(TEXT), "xz"),
                ("a.docx", zipped("a", TEXT), "zip"),
                ("a.dat", ZSTD, "zstd"),
                ("b.dat", b"7z\xbc\xaf\x27\x1c", "7z"),
                ("c.dat", b"Rar!\x1a\x07\x00", "rar"),
                ("d.dat", archive(), "tar"),
            )
        ),
        ("b.gz", gzip.compress(archive()), r"b\.gz: holds tar, which is not read inside another"),
        ("c.gz", gzip.compress(gzip.compress(TEXT)), r"c\.gz: holds gzip"),
        ("a.zip", zipped("in.gz", gzip.compress(TEXT)), r"a\.zip: in\.gz: holds gzip"),
        ("d.bz2", b"no", r"d\.bz2: "),
        ("e.bz2", bz2.compress(TEXT)[:-5], r"e\.bz2: is not whole"),
        ("f.GZ", TEXT, r"f\.GZ: is not whole"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_compressed_otherwise_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for argument in (tmp_path / name, tmp_path / f"{name[:1]}*"):
        with pytest.raises(DataError, match=message):
            open_source([str(argument)], WHOLE, tmp_path / "cache")


def test_what_is_neither_a_file_nor_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/dev/null: is neither a file nor a directory"):
        DataFiles().expand("/dev/null")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="link: is neither a file nor a directory"):
        DataFiles().expand(str(tmp_path / "link"))
    assert command("--data", tmp_path / ("long" * 100), *TINY, "--out", tmp_path / "run") == 2
