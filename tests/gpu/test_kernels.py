"""What tests/penalty/test_kernel.py checks in Triton's interpreter, compiled and on the device."""

from __future__ import annotations

import pytest

from tests.penalty.kernel_checks import run_checks

pytestmark = pytest.mark.gpu


def test_compiled_kernels_do_what_torch_does(device: str) -> None:
    done = run_checks(interpret=device == "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
