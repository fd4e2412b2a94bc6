"""Real `axolotl` commands as subprocesses, and what a run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
PLUGIN = {"plugins": ["paft_plugin.PAFTPlugin"]}


def axolotl_train(config: Path) -> subprocess.CompletedProcess[str]:
    """`axolotl train CONFIG`, as a user runs it on a CPU."""
    return axolotl("train", str(config), "--launcher", "python")


def axolotl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Any `axolotl` command."""
    return _run([sys.executable, "-m", "axolotl.cli.main", *arguments])


def seeded_train(config: Path) -> subprocess.CompletedProcess[str]:
    """Stock `axolotl train` with the config's seed, through the pipeline."""
    return _run([sys.executable, "-m", "paft_plugin.pipeline.train", str(config)])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)


def succeed(run: Any) -> None:
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (output_dir / "adapter_config.json").exists() else "model.safetensors"
    return load_file(output_dir / name)


def record(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "paft.json").read_text())
