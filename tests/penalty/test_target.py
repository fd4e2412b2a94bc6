"""What is said of a training that was to end at a sparsity."""

from __future__ import annotations

from typing import Any

import pytest

from paft_plugin.deltas.proof import Proof
from paft_plugin.penalty.strength import ENOUGH_STEPS, missed_target, too_few_steps


def record(ended: float | None, *, target: float | None = 0.9, step: int = 200, **others: Any) -> Proof:
    return Proof.model_validate(
        {
            "finished": True,
            "steps_penalised": step,
            **({} if target is None else {"target_sparsity": target, "target_threshold": 1e-5}),
            "sparsity": None if ended is None else {"1e-05": ended},
            "history": [{"step": 1, "lambda": 0.0}, {"step": step, "lambda": 2.888e-3}],
            **others,
        }
    )


@pytest.mark.parametrize("ended", [0.86, 0.889, 0.9, 0.912, 0.93])
def test_what_steering_leaves_is_no_miss(ended: float) -> None:
    assert missed_target(record(ended)) is None


@pytest.mark.parametrize("ended", [0.0, 0.106, 0.84, 0.95, 1.0])
def test_a_miss_names_target_end_and_what_to_do(ended: float) -> None:
    said = missed_target(record(ended))
    assert said is not None
    assert "paft_target_sparsity: 0.9 was missed" in said
    assert f"{ended:.1%} of the delta's entries are at or under 1e-5" in said
    assert "train for longer" in said
    assert "paft_l1_lambda: 2.9e-03" in said


def test_distance_is_measured_in_log_odds() -> None:
    assert missed_target(record(0.98, target=0.99)) is not None
    assert missed_target(record(0.51, target=0.5)) is None


def test_a_short_run_is_told_how_many_steps_it_takes() -> None:
    assert f"for {ENOUGH_STEPS} steps or more" in (missed_target(record(0.1, step=19)) or "")


@pytest.mark.parametrize(
    "unknown",
    [
        record(0.1, target=None),
        record(0.1, finished=False),
        record(None),
        record(0.1, history=[]),
    ],
)
def test_nothing_is_said_of_what_is_not_known(unknown: Proof) -> None:
    assert missed_target(unknown) is None


def test_a_run_that_begins_is_told_if_it_is_too_short() -> None:
    assert "19 steps are few" in (too_few_steps(0.9, 19) or "")
    assert too_few_steps(0.9, ENOUGH_STEPS) is None
    assert too_few_steps(None, 19) is None
