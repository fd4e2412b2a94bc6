"""Running the functions `check_…` of test_kernel.py, in a pytest that has Triton interpret the kernels or compile them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("test_kernel.py")


def run_checks(interpret: bool) -> subprocess.CompletedProcess[str]:
    """All of them."""
    options = [
        "-o",
        "python_functions=check_*",
        "-o",
        "addopts=--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", CHECKS, *options],
        cwd=CHECKS.parents[2],
        env=os.environ | {"TRITON_INTERPRET": str(int(interpret))},
        capture_output=True,
        text=True,
    )
