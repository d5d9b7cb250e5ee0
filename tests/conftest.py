"""Settings that every test shares, and what some ask for."""

import gc
import os
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
import torch
from hypothesis import settings
from patience import PATIENCE_S

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as kernels are defined

# what settings are here is for the tests to say, and how wide --help is
for variable in [name for name in os.environ if name.startswith("SPECDEC_")]:
    if variable not in ("SPECDEC_NATIVE_DIR", "SPECDEC_BF16_PRODUCTS"):
        del os.environ[variable]
os.environ["COLUMNS"] = "200"

# a machine may be busy for longer than the five seconds for which clients wait otherwise
for call in ("get", "post", "stream"):
    setattr(httpx, call, partial(getattr(httpx, call), timeout=PATIENCE_S))

# examples are judged by what they show, not by how long a loaded machine takes
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="module")
def short_cards() -> Iterator[None]:
    """Runs measure acceptance once for each file, not all that a card tells: that takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.export.TEMPERATURES", (1.0,))
        patch.setattr("train.export.DRAFT_LENGTHS", (3,))
        yield


def pytest_collection_finish() -> None:
    """What is there before the tests stays there, and need not be looked through behind each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_leaks() -> Iterator[None]:
    """What a test leaves open is told, and charged to it, as it is collected: at once."""
    yield
    gc.collect()
