"""The compiled core: built from its source on first use, kept for the next start.

C++ without dependencies, compiled for this very processor.  Knows nothing of what the
functions do; where there is no compiler `native_library` says so and the caller goes without.

bfloat16 weights are multiplied in float32, with inputs rounded to bfloat16 too and two products a
lane, or as 16-bit integers (`Products`): what is faster here, or what SPECDEC_BF16_PRODUCTS says.
The bytes that a model chooses can differ between them.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "native"
SOURCES, HEADERS = sorted(NATIVE.glob("*.cpp")), sorted(NATIVE.glob("*.h"))
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")

Products = Literal["float32", "pairs", "integers"]
"""How bfloat16 weights, keys and values are multiplied: `native/products.h` and `native/cache.h`
say what each rounds."""
PRODUCTS = get_args(Products)

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "specdec_team": (_POINTER, [_INT]),
    "specdec_team_free": (None, [_POINTER]),
    "specdec_stack": (_POINTER, [_POINTER, ctypes.c_float, _INT, _INT]),
    "specdec_text_bytes": (ctypes.c_int64, [_INT] * 3),
    "specdec_stack_free": (None, [_POINTER]),
    "specdec_block": (None, [_POINTER, _INT] + [_POINTER] * 6),
    "specdec_finish": (None, [_POINTER] * 5),
    "specdec_forward": (None, [_POINTER, _POINTER, _INT] + [_POINTER] * 6),
    "specdec_model": (_POINTER, [_POINTER] * 2),
    "specdec_model_free": (None, [_POINTER]),
    "specdec_model_copy": (None, [_POINTER] + [_INT] * 3),
    "specdec_model_repeats": (_INT, [_POINTER, _INT, _POINTER]),
    "specdec_parallel": (_POINTER, [_POINTER] + [_INT] * 3 + [ctypes.c_float] + [_POINTER] * 7),
    "specdec_autoregressive": (_POINTER, [_POINTER] + [_INT] * 4 + [_POINTER] * 3),
    "specdec_drafter_free": (None, [_POINTER]),
    "specdec_drafter_keep": (None, [_POINTER, _INT]),
    "specdec_drafter_copy": (None, [_POINTER, _INT, _INT]),
    "specdec_round": (None, [_POINTER] * 5),
    "specdec_choose": (
        None,
        [_POINTER, _INT, _INT, _INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER],
    ),
}


class NativeUnavailable(RuntimeError):
    """Why the compiled core cannot be had here."""


@cache
def native_library() -> ctypes.CDLL:
    """The loaded library, compiled if need be.  NativeUnavailable where that cannot be."""
    path = _built()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # as on a file system that nothing may be run from
        raise NativeUnavailable(f"the compiled core cannot be loaded: {error}") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def team() -> int:
    """The threads that passes run on, as many as torch computes with; one team in a process."""
    handle: int = native_library().specdec_team(torch.get_num_threads())
    return handle


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Within, torch's operations stay on the calling thread.

    After an operation that it shares torch's threads spin on the cores that a pass needs.
    """
    team()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _built() -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    source = b"".join(path.read_bytes() for path in (*SOURCES, *HEADERS))
    processor = _processor()
    flags = [*FLAGS, f"-DSPECDEC_{_products(processor).upper()}"]
    depends = repr((flags, compiler, processor.get("flags", processor.get("Features"))))
    key = hashlib.sha256(source + depends.encode()).hexdigest()[:20]
    for directory in _directories():
        path = directory / f"specdec-{key}.so"
        with suppress(OSError):  # a directory that may not be looked into
            if path.exists() and _ours(directory):
                return path
    if compiler is None:
        raise NativeUnavailable("no C++ compiler was found")
    for directory in _directories():
        path = directory / f"specdec-{key}.so"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(directory):
                continue
            with tempfile.TemporaryDirectory(dir=directory) as temporary:
                logger.info("compiling the core for this processor")
                fresh = Path(temporary) / "library.so"
                command = [compiler, *flags, *map(str, SOURCES), "-o", str(fresh)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    first = (done.stderr.strip() or "no message").splitlines()[0]
                    raise NativeUnavailable(f"{compiler} failed: {first}")
                fresh.replace(path)
        except OSError:
            continue  # not a place to write to
        return path
    raise NativeUnavailable("no directory to keep the compiled core in can be written to")


def _directories() -> list[Path]:
    """Where compiled cores are looked for and kept, best first."""
    given = os.environ.get("SPECDEC_NATIVE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    places = [home / "specdec", Path(tempfile.gettempdir()) / f"specdec-{os.getuid()}"]
    return [Path(given), *places] if given else places


def _ours(directory: Path) -> bool:
    """Whether nobody else can have put a library there: it will run with our rights."""
    status = directory.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def _products(processor: dict[str, str]) -> Products:
    """How bfloat16 weights are multiplied.  ValueError for what cannot be.

    AMD's processors multiply pairs at twice the rate of float32, Intel's at half of it; where one
    instruction multiplies and adds 16-bit integers (VNNI), that has twice the rate on both.
    """
    flags = processor.get("flags", "").split()
    can: dict[str, bool] = {
        "float32": True,
        "pairs": "avx512_bf16" in flags,
        "integers": "avx2" in flags and ("avx512f" not in flags or "avx512bw" in flags),
    }
    asked = os.environ.get("SPECDEC_BF16_PRODUCTS", "auto")
    if asked not in ("auto", *PRODUCTS):
        raise ValueError(
            f"SPECDEC_BF16_PRODUCTS is {asked!r}, not one of auto, {', '.join(PRODUCTS)}"
        )
    if asked == "auto":
        if can["pairs"] and processor.get("vendor_id") == "AuthenticAMD":
            return "pairs"
        fast = "avx512f" not in flags or "avx512_vnni" in flags
        return "integers" if can["integers"] and fast else "float32"
    if not can[asked]:
        need = {"pairs": "with AVX512-BF16", "integers": "with AVX2, and AVX512BW if with AVX-512"}[
            asked
        ]
        raise ValueError(f"SPECDEC_BF16_PRODUCTS: {asked} are for processors {need}")
    return cast(Products, asked)


def _processor() -> dict[str, str]:
    """What the system says of the first processor: its flags, on which -march=native depends."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {"flags": platform.processor()}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


if __name__ == "__main__":  # at install, so that the first start need not wait
    try:
        print(native_library()._name)
    except NativeUnavailable as error:
        print(f"no compiled core, decoding will be slower: {error}")
