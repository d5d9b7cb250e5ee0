"""Settings that every test shares, and what some ask for."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as kernels are defined

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
