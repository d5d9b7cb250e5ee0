"""Fetch one pinned archive with pip, without running any of the package's own code.

pip asks a source archive's build backend for metadata before it saves the file. Here pip is
shown stand-in backends that answer from the archive's own PKG-INFO, so nothing is built, no
build requirement is fetched, and no setup.py is executed. Which index is used is pip's business:
its configuration, its environment variables, its default.

What this does not know: archives whose build backend lies inside the archive (``backend-path``)
would run that backend; do not list such packages as ``sdist``. It checks no hash of its own
beyond the one pip is given; the reader of the archive checks again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

BACKENDS = (
    "flit_core.buildapi",
    "hatchling.build",
    "maturin",
    "mesonpy",
    "pbr.build",
    "pdm.backend",
    "poetry.core.masonry.api",
    "scikit_build_core.build",
    "setuptools.build_meta",
    "uv_build",
)

STAND_IN = """\
import email.parser
import pathlib
import sys

__legacy__ = sys.modules[__name__]


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    head = email.parser.HeaderParser().parsestr(text)
    name = head["Name"].replace("-", "_") + "-" + head["Version"] + ".dist-info"
    folder = pathlib.Path(metadata_directory, name)
    folder.mkdir()
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return name


def build_wheel(*args, **kwargs):
    raise RuntimeError("nothing is built here")
"""


class DownloadError(ValueError):
    """pip could not bring the archive; the message ends with pip's own last lines."""


def write_stand_ins(folder: Path) -> None:
    """One importable module per known backend, each answering from PKG-INFO."""
    for backend in BACKENDS:
        package = folder.joinpath(*backend.split("."))
        package.mkdir(parents=True)
        for parent in package.parents:
            if parent == folder:
                break
            (parent / "__init__.py").touch()
        (package / "__init__.py").write_text(STAND_IN, encoding="utf-8")


def fetch(name: str, version: str, kind: str, sha256: str, folder: Path) -> None:
    """Let pip put the archive of ``name==version`` with this sha256 into ``folder``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{name} {version}: no place to download to: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        stand_ins = Path(scratch, "backends")
        write_stand_ins(stand_ins)
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        environment = dict(os.environ)
        if kind == "sdist":
            command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
            environment["PYTHONPATH"] = str(stand_ins)
        else:
            command += ["--only-binary", ":all:"]
        command += ["--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-6:])
        raise DownloadError(f"{name} {version}: pip could not download the {kind}:\n{last}")
