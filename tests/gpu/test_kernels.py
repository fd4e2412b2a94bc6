"""What tests/penalty/test_kernel.py checks in Triton's interpreter, compiled and on the device."""

from __future__ import annotations

import pytest
import torch

from paft_plugin.benchmarks.gpu_kernels import ODD_SHAPES, compare_kernels
from tests.penalty.kernel_checks import run_checks

pytestmark = pytest.mark.gpu


def test_compiled_kernels_do_what_torch_does(device: str) -> None:
    done = run_checks(interpret=device == "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


def test_kernels_agree_with_the_torch_pass_on_the_same_device(device: str) -> None:
    shapes = ODD_SHAPES if device == "cuda" else ODD_SHAPES[:2]
    row = compare_kernels(device, shapes, ((64, 96),), repeats=1)
    assert all(figure.met for figure in row.figures if figure.at_most is not None)
    if device == "cuda":
        torch.cuda.synchronize()
