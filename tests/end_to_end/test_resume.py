"""`axolotl train`, killed with SIGKILL and resumed, ends where an uninterrupted run ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paft_plugin.pipeline.train import drop_torn
from tests.end_to_end.runs import LORA, PLUGIN, axolotl_train, record, succeed, weights

pytestmark = pytest.mark.slow
Config = Callable[..., Path]

SAVING = {"num_epochs": 24, "save_strategy": "steps", "save_steps": 6, "save_total_limit": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora, steered": {**LORA, "paft_l1_lambda": 1e-5, "paft_target_sparsity": 0.5, "paft_inspect_steps": 5},
    "full, proximal": {"paft_l1_lambda": 0.01, "paft_l1_mode": "proximal", "paft_l1_warmup_ratio": 0.2},
}


def train_until_checkpoint(config: Path, checkpoint: Path) -> None:
    """Kill the run, children and all, once it writes the last file of `checkpoint`, and drop what the kill left half-written.

    Stock axolotl resumes from the last checkpoint whether it is whole or not; `axolotl paft run` drops torn ones first, as here.
    """
    command = [sys.executable, "-m", "axolotl.cli.main", "train", str(config), "--launcher", "python"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (checkpoint / "trainer_state.json").exists():
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    drop_torn(checkpoint.parent)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_killed_run_resumes_to_the_same_end(kind: str, config: Config, tmp_path: Path) -> None:
    settings = {**PLUGIN, **SAVING, **SETTINGS[kind]}
    succeed(axolotl_train(config("straight", **settings)))
    train_until_checkpoint(config("killed", **settings), tmp_path / "killed" / "checkpoint-12")
    assert record(tmp_path / "killed")["finished"] is False
    succeed(axolotl_train(config("killed", auto_resume_from_checkpoints=True, **settings)))

    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    proofs = [record(tmp_path / name) for name in ("straight", "killed")]
    assert proofs[1]["resumed_at_step"] >= 6
    assert {**proofs[0], "resumed_at_step": 0} == {**proofs[1], "resumed_at_step": 0}
