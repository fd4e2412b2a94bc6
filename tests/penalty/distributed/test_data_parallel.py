"""Two processes end where one does, whatever spreads the model: DDP, FSDP2, DeepSpeed's ZeRO-1 and 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")
# The same batches in one process and in two; reentrant checkpointing but under FSDP2.
CASES = {
    "full-ddp-sgd": "full-single-sgd",
    "lora-ddp-adamw_torch": "lora-single-adamw_torch",
    "saved-ddp-adamw_torch": "saved-single-adamw_torch",
    "full-fsdp2-sgd": "full-single-sgd",
    "saved-fsdp2-adamw_torch": "saved-single-adamw_torch",
    "lora-fsdp2-adamw_torch-target": "lora-single-adamw_torch-target",
    "full-fsdp2-adamw_torch-target": "full-single-adamw_torch-target",
    "full-zero1-adamw_torch": "full-single-adamw_torch",
    "saved-zero1-adamw_torch": "saved-single-adamw_torch",
    "full-zero2-adamw_torch": "full-single-adamw_torch",
    "saved-zero2-adamw_torch": "saved-single-adamw_torch",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for options, cases in (([], sorted(set(CASES.values()))), (launch, list(CASES))):
        command = [sys.executable, *options, str(WORKER), str(directory), *cases]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=_environment())
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return directory


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(WORKER.parents[3])}


def record(runs: Path, case: str) -> dict[str, Any]:
    return json.loads((runs / case / "paft.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_does(case: str, runs: Path) -> None:
    alone, together = load_file(runs / f"{CASES[case]}.safetensors"), load_file(runs / f"{case}.safetensors")
    assert alone.keys() == together.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=1e-4, atol=3e-6, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_measure_what_one_does(case: str, runs: Path) -> None:
    alone, together = record(runs, CASES[case]), record(runs, case)
    assert together["entries"] == alone["entries"]
    assert together["tensors"] == alone["tensors"]
    assert together["steps_penalised"] == alone["steps_penalised"] > 0
    assert together["l1_norm"] == pytest.approx(alone["l1_norm"], rel=1e-4)
    assert together["sparsity"]["1e-05"] == pytest.approx(alone["sparsity"]["1e-05"], abs=2e-3)
    strengths = ([point["lambda"] for point in one["history"]] for one in (alone, together))
    assert next(strengths) == pytest.approx(next(strengths), rel=1e-3)
