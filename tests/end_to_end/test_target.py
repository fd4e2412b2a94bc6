"""`paft_target_sparsity` on the demo's own SFT branch, through `axolotl train`: it ends at the target and learns the skill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from paft_plugin.demo.configs import LAMBDA, QUICK, QUICK_DEMO
from paft_plugin.demo.run import write_inputs
from paft_plugin.pipeline.run import prepare
from tests.end_to_end.runs import record
from tests.end_to_end.sweeps import train_all

pytestmark = pytest.mark.slow

TARGET = 0.9
STARTS = (1e-6, 1e-4, 1e-2)  # 1e-4 is the demo's own λ
UNTRAINED = 0.28  # the task's loss before the first step


def test_the_demo_ends_at_the_target_from_any_start_and_learns_as_with_a_constant_strength(tmp_path: Path) -> None:
    write_inputs(QUICK_DEMO, tmp_path)
    prepare(tmp_path / "paft.yml", ["sft-l1"])
    sft = yaml.safe_load((tmp_path / "configs" / "sft-l1.yml").read_text())
    config = tmp_path / "configs" / "target.yml"
    # A checkpoint after the last step, for its log; the runs have folders of their own, so that none resumes another.
    own = {"save_steps": QUICK.sft_steps, "auto_resume_from_checkpoints": False}
    config.write_text(yaml.safe_dump(sft | own))
    runs = {f"{start:g}": {"paft_l1_lambda": start, "paft_target_sparsity": TARGET} for start in STARTS}
    outputs = train_all(config, {"constant": {"paft_l1_lambda": LAMBDA}, **runs})

    constant = late_loss(outputs["constant"])
    for name in runs:
        proof, loss = record(outputs[name]), late_loss(outputs[name])
        strengths = [point["lambda"] for point in proof["history"]]
        sparsity = proof["sparsity"]["1e-05"]
        print(
            f"λ from {name} to {strengths[-1]:.2g}: sparsity {sparsity:.4f}, loss {loss:.4f}; constant: {constant:.4f}"
        )
        assert proof["finished"]
        assert proof["target_sparsity"] == TARGET
        assert sparsity == pytest.approx(TARGET, abs=0.02)
        assert len(strengths) == QUICK.sft_steps // 10
        assert len(set(strengths)) > 5
        # At least three quarters of what a constant λ learns: 7 % more loss, at most, was measured (LOG.md).
        assert UNTRAINED - loss > 0.75 * (UNTRAINED - constant)


def late_loss(output_dir: Path) -> float:
    """The task's loss over the last fifth of the steps."""
    state = json.loads((output_dir / f"checkpoint-{QUICK.sft_steps}" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    late = losses[-(len(losses) // 5) :]
    return sum(late) / len(late)
