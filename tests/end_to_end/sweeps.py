"""Many `axolotl train` runs in one process, through its own `--sweep`: importing axolotl takes longer than a tiny run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

# The plugin, and the one that writes down what the optimizer is given; clipping would scale that.
STRENGTH = 1e-3
WITNESSED = {
    "plugins": ["paft_plugin.PAFTPlugin", "witness.Witness"],
    "paft_l1_lambda": STRENGTH,
    "max_grad_norm": 0,
}


def train_all(config: Path, runs: dict[str, dict[str, Any]], **environment: str) -> dict[str, Path]:
    """`axolotl train CONFIG --sweep SWEEP`, one run for each set of changes; returns each run's output directory.

    `environment` goes on top of this process's. The folder of this file is importable in the runs, for `WITNESSED`. axolotl
    shuffles the runs; what one of them patches into a model's class stays there for the others.
    """
    outputs = {name: config.parent / "sweep" / name for name in runs}
    sweep = config.with_name("sweep.yml")
    sweep.write_text(yaml.safe_dump({"_": [{**runs[name], "output_dir": str(outputs[name])} for name in runs]}))
    command = [sys.executable, "-m", "axolotl.cli.main", "train", str(config), "--sweep", str(sweep)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, "--launcher", "python"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {name: next(output.iterdir()) for name, output in outputs.items()}
