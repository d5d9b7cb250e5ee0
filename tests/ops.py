"""Programs of Debian's packages that slow tests run; tests/ops_tools.sh brings them."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.prefix) / "ops"


def tool(name: str) -> str:
    """Where a program lies.  Without it the test fails, or is skipped if it could not be had."""
    path = os.pathsep.join((str(TOOLS / "usr/bin"), os.environ["PATH"], "/usr/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        unavailable = TOOLS / "unavailable"
        if unavailable.exists():
            pytest.skip(unavailable.read_text().strip())
        pytest.fail(f"{name} is missing: `make ops-tools` brings it")
    return found
