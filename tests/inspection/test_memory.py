"""Memory does not grow with the number of layers, nor with the size of a tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

SCRIPT = """
import resource, sys
from pathlib import Path
from paft_plugin.inspection.inspect import inspect_deltas
folder = Path(sys.argv[1])
inspect_deltas(folder / "base", {"one": folder / "one", "other": folder / "other"})
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def make(folder: Path, layers: int, rows: int) -> Path:
    torch.manual_seed(0)
    for name in ("base", "one", "other"):
        weights = {f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(rows, 2048) for layer in range(layers)}
        (folder / name).mkdir(parents=True)
        save_file(weights, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def peak_mb(folder: Path) -> float:
    """Of a process of its own."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    return int(ran.stdout.split()[-1]) / 1e3


def test_eight_times_the_layers_take_no_more_memory(tmp_path: Path) -> None:
    few, many = make(tmp_path / "few", 2, 2048), make(tmp_path / "many", 16, 2048)
    # The models are 3 × 34 and 3 × 268 MB.
    assert peak_mb(many) < peak_mb(few) + 60


def test_a_tensor_of_many_rows_is_never_there_as_a_whole(tmp_path: Path) -> None:
    low, high = make(tmp_path / "low", 1, 16384), make(tmp_path / "high", 1, 65536)
    # Held as a whole, one more delta alone would be 400 MB more, the mapped files 1200 MB.
    assert peak_mb(high) < peak_mb(low) + 100
