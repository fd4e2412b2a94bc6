"""`paft_target_sparsity` on the demo's own SFT branch, through `axolotl train`: it ends at the target and learns the skill."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.demo.configs import LAMBDA, QUICK
from paft_plugin.demo.plan import QUICK_DEMO
from paft_plugin.demo.run import write_inputs

from .conftest import axolotl_train

pytestmark = pytest.mark.slow

TARGET = 0.9
THRESHOLD = "1e-05"
STARTS = (1e-6, 1e-4, 1e-2)  # 1e-4 is the demo's own λ


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training left behind."""

    record: dict[str, Any]
    loss: float
    """The task's, over the last fifth of the steps."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base model, data and configs."""
    run_dir = tmp_path_factory.mktemp("demo")
    write_inputs(QUICK_DEMO, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def constant(demo: Path) -> Run:
    """The branch as the demo trains it."""
    return train(demo, "constant", paft_l1_lambda=LAMBDA)


def train(demo: Path, name: str, **changes: Any) -> Run:
    """Run the config of the sparse branch with `changes`, and a checkpoint after the last step for its log."""
    output_dir = demo / "branches" / name
    config = yaml.safe_load((demo / "configs" / "sft-l1.yml").read_text())
    config |= {"output_dir": str(output_dir), "save_strategy": "steps", "save_steps": QUICK.sft_steps, **changes}
    path = demo / "configs" / f"{name}.yml"
    path.write_text(yaml.safe_dump(config))
    run = axolotl_train(path)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    state = json.loads((output_dir / f"checkpoint-{QUICK.sft_steps}" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    late = losses[-(len(losses) // 5) :]
    return Run(json.loads((output_dir / "paft.json").read_text()), sum(late) / len(late))


@pytest.mark.parametrize("start", STARTS)
def test_the_demo_ends_at_the_target_from_any_start_and_learns_as_with_a_constant_strength(
    start: float, demo: Path, constant: Run
) -> None:
    run = train(demo, f"from {start:g}", paft_l1_lambda=start, paft_target_sparsity=TARGET)
    strengths = [point["lambda"] for point in run.record["history"]]
    print(
        f"start {start:g}: sparsity {run.record['sparsity'][THRESHOLD]:.4f}, λ {strengths[-1]:.2g}, loss {run.loss:.4f}; "
        f"constant λ {LAMBDA:g}: sparsity {constant.record['sparsity'][THRESHOLD]:.4f}, loss {constant.loss:.4f}"
    )
    assert run.record["finished"]
    assert run.record["target_sparsity"] == TARGET
    assert run.record["sparsity"][THRESHOLD] == pytest.approx(TARGET, abs=0.02)
    assert len(strengths) == QUICK.sft_steps // 10
    assert len(set(strengths)) > 5
    # Untrained, the loss is 0.30; the demo's branch ends near 0.17 with or without a penalty.
    assert run.loss < 1.1 * constant.loss
