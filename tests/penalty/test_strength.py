"""λ of each step without a target: constant, after a warm-up."""

from __future__ import annotations

import pytest

from paft_plugin.penalty.strength import Schedule, TrainingProgress


def test_a_constant_strength_is_constant() -> None:
    assert {Schedule(0.5).at(TrainingProgress(step, 100)) for step in range(100)} == {0.5}


def test_a_warm_up_rises_in_equal_steps_and_then_stays() -> None:
    strengths = [Schedule(0.5, warmup_ratio=0.1).at(TrainingProgress(step, 100)) for step in range(100)]
    assert strengths[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert set(strengths[10:]) == {0.5}


def test_a_warm_up_shorter_than_a_step_is_none() -> None:
    assert Schedule(0.5, warmup_ratio=0.01).at(TrainingProgress(0, 10)) == 0.5
