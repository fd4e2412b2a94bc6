"""Training curves: the same from each place that knows of them, and from what is left of broken ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.inspection.training_log import read_curve

LOSSES = {10: 0.3016, 20: 0.2872, 30: 0.2454, 40: 0.203}
LAMBDA = 1e-4


def write_log(run: Path, losses: dict[int, float], branch: str = "sft-l1") -> None:
    """As axolotl's Trainer prints it: figures as text, behind progress bars that rewrite their line."""
    lines = [
        "$ axolotl train",
        "Tokenizing Prompts (num_proc=2): 100%|███| 12800/12800 [00:02<00:00, 4691.2 examples/s]",
    ]
    for step, loss in losses.items():
        bars = "".join(f"\r {n}%|█▏  | {n}/120 [00:{n % 60:02d}<00:58,  1.35it/s]" for n in range(step - 9, step + 1))
        figures = {
            "loss": f"{loss}", "learning_rate": "5e-05", "paft/l1_norm": "153.8", "paft/lambda": f"{LAMBDA:g}",
            "paft/sparsity@1e-5": "0.8685", "memory/max_active (GiB)": "0", "tokens/trainable": 40585, "epoch": "0.5",
        }  # fmt: skip
        lines.append(f"{bars}\r{' ' * 40}\r{figures}")
    lines.append("\r100%|███| 120/120 [00:18<00:00]{'train_runtime': '18.84', 'train_loss': '0.2042', 'epoch': '0.6'}")
    file = run / "logs" / f"{branch}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))


def write_state(run: Path, checkpoint: int, losses: dict[int, float]) -> Path:
    history: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "learning_rate": 5e-5, "paft/lambda": LAMBDA, "paft/sparsity@1e-5": 0.8685}
        for step, loss in losses.items()
    ]
    file = run / "branches" / "sft-l1" / f"checkpoint-{checkpoint}" / "trainer_state.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"log_history": history}))
    return file


def write_proof(run: Path) -> None:
    folder = run / "branches" / "sft-l1"
    folder.mkdir(parents=True, exist_ok=True)
    history = [{"step": step, "lambda": LAMBDA, "l1_norm": 153.8, "sparsity": {"1e-05": 0.8685}} for step in LOSSES]
    (folder / "paft.json").write_text(
        json.dumps({"schema": 1, "finished": True, "steps_penalised": 40, "history": history})
    )


def test_log_and_state_of_one_training_give_one_curve(tmp_path: Path) -> None:
    write_log(tmp_path / "log", LOSSES)
    write_state(tmp_path / "state", 40, LOSSES)
    log, state = read_curve(tmp_path / "log", "sft-l1"), read_curve(tmp_path / "state", "sft-l1")
    assert log is not None
    assert state is not None
    assert log.steps == state.steps == tuple(LOSSES)
    assert log.loss == state.loss == tuple(LOSSES.values())
    assert log.lambda_ == state.lambda_ == (LAMBDA,) * 4
    assert log.sparsity == state.sparsity == {"1e-05": (0.8685,) * 4}
    assert log.learning_rate == state.learning_rate
    assert log.l1_norm == (153.8,) * 4
    assert log.sources == ("logs/sft-l1.log",)
    assert log.start_loss == 0.3016
    assert log.loss_steps == tuple(LOSSES)
    assert log.final_loss == 0.203


def test_the_more_exact_source_is_on_top_and_the_others_fill_its_gaps(tmp_path: Path) -> None:
    write_log(tmp_path, LOSSES)
    write_proof(tmp_path)
    write_state(tmp_path, 20, {10: 0.30164, 20: 0.28719})
    curve = read_curve(tmp_path, "sft-l1")
    assert curve is not None
    assert curve.loss == (0.30164, 0.28719, 0.2454, 0.203)
    assert curve.l1_norm == (153.8,) * 4
    assert [Path(source).name for source in curve.sources] == ["trainer_state.json", "paft.json", "sft-l1.log"]


def test_the_last_checkpoint_is_the_one_with_the_greatest_number(tmp_path: Path) -> None:
    write_state(tmp_path, 9, {9: 0.5})
    write_state(tmp_path, 100, {9: 0.5, 100: 0.25})
    curve = read_curve(tmp_path, "sft-l1")
    assert curve is not None
    assert curve.loss == (0.5, 0.25)


def test_a_step_without_a_value_has_nan_and_no_part_in_the_loss(tmp_path: Path) -> None:
    write_proof(tmp_path)
    curve = read_curve(tmp_path, "sft-l1")
    assert curve is not None
    assert all(map(math.isnan, curve.loss))
    assert curve.start_loss is curve.final_loss is None
    assert curve.loss_steps == ()


@pytest.mark.parametrize("broken", ["{", "[]", '{"log_history": 3}', '{"log_history": [{"step": "x", "loss": []}, 7]}'])
def test_a_broken_file_adds_nothing(broken: str, tmp_path: Path) -> None:
    state = write_state(tmp_path, 40, LOSSES)
    state.write_text(broken)
    assert read_curve(tmp_path, "sft-l1") is None
    write_log(tmp_path, LOSSES)
    curve = read_curve(tmp_path, "sft-l1")
    assert curve is not None
    assert curve.loss == tuple(LOSSES.values())


def test_a_log_without_progress_bars_counts_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sft.log").write_text("{'loss': '0.5'}\n{'loss': 'oops}\n{'eval_loss': 1}\n{'loss': '0.25'}\n")
    curve = read_curve(tmp_path, "sft")
    assert curve is not None
    assert curve.steps == (1, 2)
    assert curve.loss == (0.5, 0.25)


def test_nothing_known_is_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path, "sft") is None
