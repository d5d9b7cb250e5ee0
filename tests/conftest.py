"""Settings that every test shares."""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as kernels are defined

# examples are judged by what they show, not by how long a loaded machine takes
settings.register_profile("project", deadline=None)
settings.load_profile("project")
