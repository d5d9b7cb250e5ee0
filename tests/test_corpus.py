"""The corpus builder on tiny archives made here: no network, no real package."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from train import corpus, corpus_download
from train.corpus import ENWIK8_BYTES, ENWIK8_TAIL_BYTES, build, main, read_enwik8, write_all
from train.corpus_archive import ArchiveError, plain_path, read_members
from train.corpus_download import DownloadError, fetch, write_stand_ins
from train.corpus_filter import MAX_BYTES, MIN_BYTES, SeenText, clean, skipped_path
from train.corpus_source import CorpusError, Source, find_archive, read_sources

BOTH = {"prose": ("docs/*",), "code": ("src/*",)}


def prose(tag: str, lines: int = 20) -> bytes:
    """Text whose lines occur in no other text of another tag."""
    return "".join(
        f"The {tag} line, one of many: {tag * 2}{'x' * n}.\n" for n in range(lines)
    ).encode()


def make_sdist(folder: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    path = folder / f"{name}-{version}.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    # no time of day in it: an archive made again is the same archive
    with (
        gzip.GzipFile(path, "wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as bundle,
    ):
        for inside, data in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{inside}")
            member.size = len(data)
            bundle.addfile(member, io.BytesIO(data))
    return path


def make_wheel(folder: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as bundle:
        for inside, data in files.items():
            bundle.writestr(zipfile.ZipInfo(inside), data)  # of 1980, likewise
    return path


def source_of(path: Path, kind: str = "sdist", **changes: Any) -> Source:
    fields: dict[str, Any] = {
        "name": path.name.split("-")[0],
        "version": "1.0",
        "kind": kind,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "license": "MIT",
        "take": BOTH,
    }
    return Source(**{**fields, **changes})


def list_text(source: Source, extra: str = "") -> str:
    take = ", ".join(f"{kind} = {json.dumps(globs)}" for kind, globs in source.take.items())
    return (
        f'[[source]]\nname = "{source.name}"\nversion = "{source.version}"\n'
        f'kind = "{source.kind}"\nsha256 = "{source.sha256}"\nlicense = "{source.license}"\n'
        f"take = {{ {take} }}\n{extra}\n"
    )


def many(count: int) -> dict[str, bytes]:
    files = {f"docs/{n}.rst": prose(f"prose{n}a") for n in range(count)}
    return files | {f"src/{n}.py": prose(f"code{n}a") for n in range(count)}


def documents(path: Path) -> list[bytes]:
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\0")
    return data.split(b"\0")[:-1]


def build_from(
    tmp_path: Path, files: Mapping[str, bytes], fraction: float = 0.0
) -> tuple[dict[str, Any], Path]:
    """One sdist of these files, and enough code and prose for no class to be empty."""
    archive = make_sdist(tmp_path / "downloads", "alpha", {**files, **many(1)})
    out = tmp_path / "out"
    return build([source_of(archive)], archive.parent, out, fraction, None), out


# --- what is taken -----------------------------------------------------------------------------


def test_documents_end_with_one_nul_and_classes_are_apart(tmp_path: Path) -> None:
    _, out = build_from(tmp_path, many(3))
    assert sorted(documents(out / "prose.train.bin")) == sorted(
        data for path, data in many(3).items() if path.startswith("docs")
    )
    assert len(documents(out / "code.train.bin")) == 3
    assert (out / "prose.valid.bin").read_bytes() == b""


def test_only_listed_files_with_the_right_suffix_are_taken(tmp_path: Path) -> None:
    files = {
        "docs/picture.svg": prose("svg"),
        "docs/conf.py": prose("conf"),
        "other/readme.rst": prose("other"),
        "src/vendor/copy.py": prose("copy"),
        "docs/locale/fr.rst": prose("fr"),
        "src/alpha.egg-info/x.py": prose("egg"),
    }
    manifest, _ = build_from(tmp_path, files)
    (record,) = manifest["sources"]
    assert (record["prose"]["files"], record["code"]["files"]) == (1, 1)


def test_wheels_are_read_without_stripping_a_folder(tmp_path: Path) -> None:
    archive = make_wheel(tmp_path, "alpha", {"docs/a.md": prose("md"), "src/a.py": prose("py")})
    build([source_of(archive, "wheel")], tmp_path, tmp_path / "out", 0.0, None)
    assert documents(tmp_path / "out" / "prose.train.bin") == [prose("md")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x" * (MIN_BYTES - 1), "size"),
        (b"word \n" * (MAX_BYTES // 6 + 1), "size"),
        (b" \n" * MIN_BYTES, "size"),
        (prose("nul") + b"\0", "nul"),
        (prose("latin") + "é".encode("latin-1"), "encoding"),
        (prose("long") + b"y" * 3_000, "long-line"),
        (b"12345 67890 abc\n" * 40, "digits"),
        (("Ωμέγα και άλφα\n" * 40).encode(), "non-ascii"),
        (b"# Automatically generated, DO NOT EDIT\n" + prose("gen"), "generated"),
        (b"# Licensed under the GNU General Public License\n" + prose("gpl"), "other-licence"),
        (prose("cc", 90) + b"https://creativecommons.org/licenses/by/4.0/\n", "other-licence"),
        (prose("good"), ""),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    assert clean(data)[1] == reason


def test_size_limits_are_inclusive() -> None:
    line = b"a line of words\n"
    assert clean(line * (MIN_BYTES // 16))[1] == ""
    assert clean(line * (MAX_BYTES // 16))[1] == ""


def test_files_outside_the_size_limits_are_not_even_read(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, "alpha", {"a": b"12", "b": b"123", "c": b"1234"})
    assert list(read_members(archive, 3, 3)) == [("b", b"123")]


def test_nul_and_bad_utf8_are_dropped_and_counted(tmp_path: Path) -> None:
    files = {"docs/nul.rst": prose("n") + b"\0", "docs/bad.rst": prose("b") + b"\xff"}
    manifest, out = build_from(tmp_path, files)
    assert manifest["sources"][0]["dropped"] == {"encoding": 1, "nul": 1}
    assert len(documents(out / "prose.train.bin")) == 1


def test_crlf_and_byte_order_mark_are_normalised(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + prose("dos").replace(b"\n", b"\r\n")
    _, out = build_from(tmp_path, {"docs/dos.rst": data})
    assert prose("dos") in documents(out / "prose.train.bin")


@pytest.mark.parametrize(
    ("path", "skipped"),
    [
        ("pkg/_vendor/x.py", True),
        ("docs/requirements.txt", True),
        ("pkg/Tests/x.py", True),
        ("pkg/requirements.py", False),
        ("docs/testing.rst", False),
        ("vendor.py", False),
    ],
)
def test_skipped_path(path: str, skipped: bool) -> None:
    assert skipped_path(path) is skipped


# --- copies ------------------------------------------------------------------------------------


def test_exact_copies_ignore_white_space() -> None:
    seen = SeenText()
    assert seen.reason_to_drop("one two\nthree") == ""
    assert seen.reason_to_drop("one  two three\n") == "duplicate"


def test_near_copies_are_dropped_above_seventy_percent() -> None:
    seen = SeenText()
    lines = [f"a line of more than twenty characters, number {n}" for n in range(10)]
    fresh = [f"another line, which was never seen, number {n}" for n in range(10)]
    assert seen.reason_to_drop("\n".join(lines)) == ""
    assert seen.reason_to_drop("\n".join(lines[:7] + fresh[:3])) == ""
    assert seen.reason_to_drop("\n".join(lines[:8] + fresh[5:7])) == "near-duplicate"
    # What was dropped is not remembered.
    assert seen.reason_to_drop("\n".join(fresh[5:])) == ""


def test_short_lines_do_not_make_a_near_copy() -> None:
    seen = SeenText()
    assert seen.reason_to_drop("import os\nimport sys\nx = 1") == ""
    assert seen.reason_to_drop("import os\nimport sys\nx = 2") == ""


def test_copies_are_dropped_across_packages(tmp_path: Path) -> None:
    first = make_sdist(tmp_path, "alpha", many(2))
    second = make_sdist(tmp_path, "beta", many(3))
    manifest = build([source_of(first), source_of(second)], tmp_path, tmp_path / "o", 0.0, None)
    assert [r["prose"]["files"] for r in manifest["sources"]] == [2, 1]
    assert manifest["sources"][1]["dropped"] == {"duplicate": 4}


def test_no_package_exceeds_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(prose("prose0a"))
    monkeypatch.setitem(corpus.CAPS, "prose", 3 * size)
    archive = make_sdist(tmp_path, "alpha", many(9))
    manifest = build([source_of(archive)], tmp_path, tmp_path / "out", 0.0, None)
    assert manifest["sources"][0]["prose"] == {"files": 3, "bytes": 3 * size}
    assert manifest["sources"][0]["dropped"] == {"cap": 6}


# --- order and split ---------------------------------------------------------------------------


def test_same_bytes_whatever_the_order_in_the_archive(tmp_path: Path) -> None:
    results = []
    for folder, files in (("a", many(12)), ("b", dict(reversed(many(12).items())))):
        archive = make_sdist(tmp_path / folder, "alpha", files)
        out = tmp_path / folder / "out"
        build([source_of(archive)], archive.parent, out, 0.3, None)
        results.append({p.name: p.read_bytes() for p in out.glob("*.bin")})
    assert results[0] == results[1]
    assert len(results[0]) == 4


def test_building_twice_gives_the_same_files(tmp_path: Path) -> None:
    _, out = build_from(tmp_path, many(8), 0.3)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    build_from(tmp_path, many(8), 0.3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_split_depends_on_the_name_alone(tmp_path: Path) -> None:
    _, few = build_from(tmp_path / "few", many(30), 0.3)
    _, more = build_from(tmp_path / "more", many(60), 0.3)
    for kind in ("prose", "code"):
        for part in ("train", "valid"):
            small = documents(few / f"{kind}.{part}.bin")
            assert small
            assert set(small) <= set(documents(more / f"{kind}.{part}.bin"))


def test_the_split_is_by_the_hash_of_package_and_path(tmp_path: Path) -> None:
    _, out = build_from(tmp_path, many(20), 0.3)
    expected = {
        data
        for path, data in many(20).items()
        if path.startswith("docs")
        and int(hashlib.sha256(f"alpha/{path}".encode()).hexdigest()[:16], 16) < 0.3 * 2**64
    }
    assert set(documents(out / "prose.valid.bin")) == expected


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_validation_fraction_is_checked(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CorpusError, match="validation-fraction"):
        build([], tmp_path, tmp_path / "out", fraction, None)


# --- the list and the archives -----------------------------------------------------------------


def test_wrong_sha256_names_package_and_file(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, "alpha", many(1))
    source = source_of(archive, sha256="0" * 64)
    with pytest.raises(CorpusError, match=r"alpha 1\.0: alpha-1\.0\.tar\.gz .* sha256 0000"):
        build([source], tmp_path, tmp_path / "out", 0.0, None)
    assert not (tmp_path / "out").exists()


def test_archive_names_may_be_spelt_otherwise(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, "Big_Alpha.x", many(1))
    assert find_archive(source_of(archive, name="big-alpha-x"), tmp_path) == archive
    assert find_archive(source_of(archive, name="big-alpha"), tmp_path) is None


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, "alpha", many(9))
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(ArchiveError, match=r"alpha-1\.0\.tar\.gz: cannot be read"):
        build([source_of(archive)], tmp_path, tmp_path / "out", 0.0, None)


def write_list(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_list_is_read(tmp_path: Path) -> None:
    source = source_of(make_sdist(tmp_path, "alpha", many(1)))
    assert read_sources(write_list(tmp_path, list_text(source))) == [source]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version", "verison", r"alpha.*unknown field 'verison'"),
        ("code =", "coed =", r"alpha.*unknown field 'coed'"),
        ("[[source]]", 'colour = "red"\n[[source]]', r"unknown field 'colour'"),
        ('kind = "sdist"', 'kind = "egg"', r"alpha.*kind must be one of"),
        ('license = "MIT"', 'license = "MIT AND GPL-3.0-only"', r"alpha.*'GPL-3.0-only'"),
        ('sha256 = "', 'sha256 = "f', r"alpha.*sha256 must be 64"),
        ('version = "1.0"', "version = 1", r"alpha.*version must be a non-empty string"),
        ('prose = ["docs/*"]', 'prose = "docs/*"', r"alpha.*lists of globs"),
        ("take = {", "take = {{", r"cannot be read"),
    ],
)
def test_mistakes_in_the_list_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = list_text(source_of(make_sdist(tmp_path, "alpha", many(1))))
    assert old in text
    with pytest.raises(CorpusError, match=message):
        read_sources(write_list(tmp_path, text.replace(old, new, 1)))


def test_missing_sha256_names_the_package(tmp_path: Path) -> None:
    text = list_text(source_of(make_sdist(tmp_path, "alpha", many(1))))
    kept = "\n".join(line for line in text.splitlines() if "sha256" not in line)
    with pytest.raises(CorpusError, match=r"source 1 \(alpha\): sha256 must be"):
        read_sources(write_list(tmp_path, kept))


def test_a_package_listed_twice_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    text = list_text(source_of(make_sdist(tmp_path, "alpha", many(1))))
    with pytest.raises(CorpusError, match="alpha is listed more than once"):
        read_sources(write_list(tmp_path, text + text))
    with pytest.raises(CorpusError, match="no \\[\\[source\\]\\]"):
        read_sources(write_list(tmp_path, ""))
    with pytest.raises(CorpusError, match=r"gone\.toml: cannot be read"):
        read_sources(tmp_path / "gone.toml")


def test_the_shipped_list_is_well_formed() -> None:
    sources = read_sources(corpus.SOURCES)
    assert len(sources) > 20
    assert any(source.take["prose"] for source in sources)


def test_an_empty_result_is_an_error(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, "alpha", {"docs/a.rst": b"short"})
    with pytest.raises(CorpusError, match=r"alpha 1\.0: nothing to take in alpha-1\.0\.tar\.gz"):
        build([source_of(archive)], tmp_path, tmp_path / "out", 0.0, None)
    archive = make_sdist(tmp_path, "beta", {"docs/a.rst": prose("only")})
    with pytest.raises(CorpusError, match="no code left"):
        build([source_of(archive)], tmp_path, tmp_path / "out", 0.0, None)
    assert not (tmp_path / "out").exists()


# --- unsafe archives ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b.py", True),
        ("../b.py", False),
        ("a/../b.py", False),
        ("/etc/b.py", False),
        ("a\\b.py", False),
        ("c:/b.py", False),
        ("a//b.py", False),
        ("", False),
    ],
)
def test_plain_path(name: str, safe: bool) -> None:
    assert (plain_path(name) == name) is safe


def test_links_and_climbing_names_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "alpha-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as bundle:
        for name in ("../x.py", "/y.py", "alpha-1.0/../z.py", "alpha-1.0/good.py"):
            member = tarfile.TarInfo(name)
            member.size = 2
            bundle.addfile(member, io.BytesIO(b"ok"))
        for kind, name in ((tarfile.SYMTYPE, "s.py"), (tarfile.LNKTYPE, "l.py")):
            member = tarfile.TarInfo(f"alpha-1.0/{name}")
            member.type = kind
            member.linkname = "alpha-1.0/good.py"
            bundle.addfile(member)
    assert list(read_members(path, 0, 9)) == [("good.py", b"ok")]


def test_links_and_climbing_names_in_a_zip_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "alpha-1.0.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        link = zipfile.ZipInfo("alpha-1.0/link.py")
        link.external_attr = 0o120777 << 16
        bundle.writestr(link, "/etc/passwd")
        bundle.writestr("alpha-1.0/../../x.py", "no")
        bundle.writestr("alpha-1.0/folder/", "")
        bundle.writestr("alpha-1.0/good.py", "ok")
    assert list(read_members(path, 0, 99)) == [("good.py", b"ok")]


def test_other_kinds_of_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not a"):
        list(read_members(tmp_path / "alpha-1.0.rar", 0, 9))


# --- enwik8 ------------------------------------------------------------------------------------


def enwik8_file(tmp_path: Path, suffix: str, data: bytes) -> Path:
    path = tmp_path / f"enwik8{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(data, 1))
    elif suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("enwik8", data)
    else:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
def test_enwik8_is_cut_before_the_measuring_bytes(tmp_path: Path, suffix: str) -> None:
    train = b"<mediawiki " + b"t" * (ENWIK8_BYTES - 11)
    tail = b"for measuring" + b"m" * (ENWIK8_TAIL_BYTES - 13)
    path = enwik8_file(tmp_path, suffix, train + tail + b"REST")
    archive = make_sdist(tmp_path, "alpha", many(1))
    out = tmp_path / "out"
    manifest = build([source_of(archive)], tmp_path, out, 0.0, path)
    assert (out / "enwik8.train.bin").read_bytes() == train
    assert (out / "enwik8.tail.bin").read_bytes() == tail
    assert (ENWIK8_BYTES, ENWIK8_TAIL_BYTES) == (3_600_000, 400_000)
    assert manifest["outputs"]["enwik8.train.bin"]["bytes"] == ENWIK8_BYTES
    assert manifest["outputs"]["enwik8.tail.bin"]["bytes"] == ENWIK8_TAIL_BYTES
    uses = {name: output.get("use") for name, output in manifest["outputs"].items()}
    assert {name for name, use in uses.items() if use} == {"enwik8.tail.bin"}
    assert uses["enwik8.tail.bin"] == "for measuring only"


def test_an_enwik8_without_a_tail_gives_none(tmp_path: Path) -> None:
    path = enwik8_file(tmp_path, "", b"<mediawiki short")
    archive = make_sdist(tmp_path, "alpha", many(1))
    manifest = build([source_of(archive)], tmp_path, tmp_path / "out", 0.0, path)
    assert "enwik8.train.bin" in manifest["outputs"]
    assert not (tmp_path / "out" / "enwik8.tail.bin").exists()


def test_enwik8_mistakes(tmp_path: Path) -> None:
    good = b"<mediawiki " + bytes(range(1, 256)) * 40
    damaged = enwik8_file(tmp_path, ".gz", good)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    not_zip = tmp_path / "text.zip"
    not_zip.write_bytes(good)
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as bundle:
        bundle.writestr("a", good)
        bundle.writestr("b", good)
    for path, message in (
        (tmp_path / "gone", "cannot be read"),
        (tmp_path, "cannot be read"),
        (damaged, "cannot be read"),
        (not_zip, "cannot be read"),
        (two, "2 files in it"),
        (enwik8_file(tmp_path, "", b"something else"), "does not begin like enwik8"),
        (enwik8_file(tmp_path, "", b""), "does not begin like enwik8"),
    ):
        with pytest.raises(CorpusError, match=message):
            read_enwik8(path)


# --- the manifest, and writing -----------------------------------------------------------------


def test_manifest_agrees_with_the_files(tmp_path: Path) -> None:
    manifest, out = build_from(tmp_path, many(6), 0.3)
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8")) == manifest
    (record,) = manifest["sources"]
    archive = tmp_path / "downloads" / "alpha-1.0.tar.gz"
    assert record["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (record["name"], record["version"], record["license"]) == ("alpha", "1.0", "MIT")
    for kind in ("prose", "code"):
        outputs = [manifest["outputs"][f"{kind}.{part}.bin"] for part in ("train", "valid")]
        # Each document has one byte more in the output than in the source's count.
        assert sum(o["bytes"] - o["documents"] for o in outputs) == record[kind]["bytes"]
        assert sum(o["documents"] for o in outputs) == record[kind]["files"]
    assert set(manifest["outputs"]) == {path.name for path in out.glob("*.bin")}
    for name, output in manifest["outputs"].items():
        data = (out / name).read_bytes()
        assert output["bytes"] == len(data)
        assert output["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_disk_error_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match="No space left"):
        write_all(tmp_path, {"a.bin": b"new", "b.bin": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_an_interruption_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, {"a.bin": b"new"})
    assert list(tmp_path.iterdir()) == []


def test_out_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(CorpusError, match="cannot be written"):
        write_all(tmp_path / "out", {"a.bin": b""})


# --- the command line, and fetching ------------------------------------------------------------


def test_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(make_sdist(tmp_path / "downloads", "alpha", many(2)))
    monkeypatch.setattr(corpus, "SOURCES", write_list(tmp_path, list_text(source)))
    arguments = ["--out", str(tmp_path / "out"), "--download-dir", str(tmp_path / "downloads")]
    assert main([*arguments, "--validation-fraction", "0"]) == 0
    assert "prose.train.bin: " in capsys.readouterr().out
    assert main([*arguments, "--enwik8", str(tmp_path / "gone")]) == 1
    assert "gone: cannot be read" in capsys.readouterr().err


def test_a_missing_archive_is_fetched_into_the_download_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(make_sdist(tmp_path / "index", "alpha", many(1)))

    def bring(name: str, version: str, kind: str, sha256: str, folder: Path) -> None:
        assert (name, version, kind, sha256) == ("alpha", "1.0", "sdist", source.sha256)
        make_sdist(folder, "alpha", many(1)).write_bytes(
            (tmp_path / "index" / "alpha-1.0.tar.gz").read_bytes()
        )

    monkeypatch.setattr(corpus, "fetch", bring)
    build([source], tmp_path / "downloads", tmp_path / "out", 0.0, None)
    assert (tmp_path / "downloads" / "alpha-1.0.tar.gz").is_file()


def test_pip_fetches_a_source_archive_and_runs_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n".encode()
    info = b"Metadata-Version: 2.1\nName: alpha\nVersion: 1.0\n"
    index = tmp_path / "index"
    source = source_of(make_sdist(index, "alpha", {"setup.py": setup, "PKG-INFO": info}))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    fetch("alpha", "1.0", "sdist", source.sha256, tmp_path / "downloads")
    assert find_archive(source, tmp_path / "downloads") is not None
    assert not ran.exists()
    with pytest.raises(DownloadError, match=r"alpha 1\.0: pip could not download the sdist"):
        fetch("alpha", "1.0", "sdist", "0" * 64, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_nowhere_to_download_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"alpha 1\.0: no place to download to"):
        fetch("alpha", "1.0", "sdist", "0" * 64, tmp_path / "file")


def test_stand_ins_answer_for_every_known_backend(tmp_path: Path) -> None:
    write_stand_ins(tmp_path / "backends")
    (tmp_path / "PKG-INFO").write_text("Name: a-b\nVersion: 2\n", encoding="utf-8")
    for number, backend in enumerate(corpus_download.BACKENDS):
        folder = tmp_path / f"metadata{number}"
        folder.mkdir()
        code = (
            f"import {backend} as b; "
            f"print(b.__legacy__.prepare_metadata_for_build_wheel({str(folder)!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(tmp_path / "backends")),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "a_b-2.dist-info"
        assert (folder / "a_b-2.dist-info" / "METADATA").is_file()
