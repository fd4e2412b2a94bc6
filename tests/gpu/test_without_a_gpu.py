"""The tests of this folder are left out unless they are asked for, say why they cannot run, and work on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.absent import without_axolotl

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-m", "gpu", "-rs", "tests/gpu")
"""As README says it, where pytest-xdist need not be installed."""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True)


IMPORTS = """
import sys
from importlib import import_module
from pkgutil import iter_modules
import paft_plugin.penalty
for module in iter_modules(paft_plugin.penalty.__path__, "paft_plugin.penalty."):
    import_module(module.name)
import_module("paft_plugin.benchmarks.gpu")
print(*(name for name in ("axolotl", "datasets", "trl", "lm_eval", "mergekit") if sys.modules.get(name)))
"""


def test_the_penalty_and_the_benchmark_can_be_imported_without_axolotl(tmp_path: Path) -> None:
    """Nor is mergekit imported before something is merged."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=os.environ | without_axolotl(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_they_are_left_out_by_default(request: pytest.FixtureRequest) -> None:
    assert "not gpu" in request.config.getini("addopts")[-1]


@pytest.mark.slow
def test_without_cuda_each_is_skipped_with_the_reason() -> None:
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout
    assert "CUDA is not available here" in done.stdout
    assert " passed" not in done.stdout


@pytest.mark.slow
def test_all_of_them_pass_on_a_cpu_where_axolotl_is_not_installed(tmp_path: Path) -> None:
    done = run(PAFT_GPU_TESTS_ON="cpu", TRITON_INTERPRET="1", **without_axolotl(tmp_path))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
