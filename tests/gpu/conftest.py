"""Where the tests of this folder run: on a GPU, or, to try the tests themselves, with `PAFT_GPU_TESTS_ON=cpu`."""

from __future__ import annotations

import os

import pytest

# Before CUDA starts: without it cuBLAS may sum in another order each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def device() -> str:
    import torch

    wanted = os.environ.get("PAFT_GPU_TESTS_ON", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("CUDA is not available here")
    return wanted
