"""Who may import whom."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"specdec", "server", "train", "bench"}
ALLOWED = {
    "specdec": {"specdec"},
    "server": {"server", "specdec"},
    "train": {"train", "specdec"},
    "bench": OURS,
}
ONLY_IN_SERVER = {
    "fastapi",
    "fastapi_offline",
    "starlette",
    "uvicorn",
    "pydantic",
    "pydantic_settings",
} | {"prometheus_client"}
CORE = {"torch", "numpy", "safetensors"}


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            assert name not in OURS or name in ALLOWED[package], f"{path} imports {name}"
            if package in ("specdec", "train"):
                assert name not in ONLY_IN_SERVER, f"{path} imports {name}"


def test_the_core_needs_nothing_but_torch_numpy_and_safetensors() -> None:
    for path in (ROOT / "specdec").rglob("*.py"):
        for name in imported(path):
            if name == "triton" and path.stem.startswith("triton_"):
                continue  # comes with torch where torch has CUDA; only these files need it
            known = name in CORE | {"specdec"} or name in sys.stdlib_module_names
            assert known, f"{path} imports {name}"


def test_files_that_need_triton_are_imported_where_kernels_are_wanted() -> None:
    for path in (ROOT / "specdec").rglob("*.py"):
        if path.stem.startswith("triton_"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("specdec.triton_"), path


def test_the_scheduler_holds_no_tensors_and_no_event_loop() -> None:
    for name in ("scheduler", "messages", "stops"):
        assert not {"torch", "asyncio"} & set(imported(ROOT / "server" / f"{name}.py"))
