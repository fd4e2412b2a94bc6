"""Diagnoses that rest on scores: they decide before the loss does, advise what keeps the skill, and cap the confidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.evaluation.statistics import wilson
from paft_plugin.inspection.diagnosis import diagnose
from paft_plugin.inspection.diagnosis.verdict import Check
from tests.inspection.planted_runs import PlantedRun, dense, plan, proof, sparse

LAMBDA = 3e-6
SKILL, SPARSE_SKILL = 36 / 64, 18 / 64
DENSE_SHARE, SPARSE_SHARE = 0.020, 0.918


def first_run() -> PlantedRun:
    """The first run on a real model (135 M parameters, one seed, target 0.9): its scores, losses and sparsities at 1e-5."""
    target = {"target_sparsity": 0.9, "target_threshold": 1e-5}
    fused = {"sft-l1": {"weight": 1.0}, "dpo": {"weight": 1.0}}
    scores = {
        "base": (0.0, 0.0),
        "sft": (SKILL, 0.2),
        "sft-l1": (SPARSE_SKILL, 0.3),
        "dpo": (0.0, 17.9),
        "paft-task_arithmetic": (20 / 64, 10.8),
        "paft-dare_ties": (16 / 64, 13.1),
        "parallel-task_arithmetic": (33 / 64, 14.7),
    }
    return PlantedRun(
        # 2.0 % of a normal distribution of this width, and 91.8 % of the sparse one, lie within 1e-5.
        deltas={"sft": dense(1, 4e-4), "sft-l1": sparse(2, 1 - SPARSE_SHARE, 2e-3), "dpo": dense(3, 9e-5)},
        losses={"sft": (1.5, 0.073), "sft-l1": (1.5, 0.13), "dpo": (0.69, 0.1)},
        proofs={"sft-l1": proof(LAMBDA, **target)},
        recipes={
            "paft-task_arithmetic": fused,
            "paft-dare_ties": fused,
            "parallel-task_arithmetic": {"sft": {"weight": 1.0}, "dpo": {"weight": 1.0}},
        },
        scores={arm: {"sft_match": skill, "preference": gain} for arm, (skill, gain) in scores.items()},
        n={"sft_match": 64},
        measures=(
            held_out("sft_match", "match"),
            held_out("preference", "gain"),
        ),
    )


def held_out(name: str, metric: str, **more: Any) -> dict[str, Any]:
    task = f"held_out/{name.removesuffix(f'_{metric}')}"
    return {"name": name, "task": task, "metric": metric, "filter": "none", "higher_is_better": True, **more}


def excess(run: PlantedRun, folder: Path) -> Check:
    return next(check for check in diagnose(run.write(folder)).checks if check.signature == "excessive L1")


def advice(check: Check, setting: str) -> float:
    return float(next(remedy.new for remedy in check.remedies if remedy.setting == setting))


def with_skill(run: PlantedRun, **scores: float) -> PlantedRun:
    """The run with another skill of some arms (`sft_l1` is `sft-l1`)."""
    changed = {
        name.replace("_", "-"): {**run.scores.get(name, {}), "sft_match": value} for name, value in scores.items()
    }
    return replace(run, scores={**run.scores, **changed})


def test_the_first_real_run_is_excessive_l1_though_the_loss_fell_as_far_as_the_twins(tmp_path: Path) -> None:
    check = excess(first_run(), tmp_path)
    skill, fall = check.evidence[:2]
    assert (check.state, check.culprit, check.confidence) == ("found", "sft-l1", "medium")
    assert (skill.value, skill.speaks_for) == (pytest.approx(SKILL - SPARSE_SKILL), True)
    assert (fall.value, fall.speaks_for) == (pytest.approx(0.96, abs=0.01), False)
    assert "sft_match is 0.281, that of sft 0.562" in check.message


def test_the_advised_target_keeps_the_skill_within_its_interval_if_it_falls_in_proportion_or_later(
    tmp_path: Path,
) -> None:
    check = excess(first_run(), tmp_path)
    target, low = advice(check, "paft_target_sparsity"), wilson(36, 64)[0]
    assert 0.3 < target < 0.9

    def skill(sparsity: float, power: float) -> float:
        way = (sparsity - DENSE_SHARE) / (SPARSE_SHARE - DENSE_SHARE)
        return SKILL - (SKILL - SPARSE_SKILL) * way**power

    assert all(skill(target, power) >= low for power in (1, 2, 8))
    assert skill(target + 0.03, 1) < low
    assert any(remedy.new == "parallel-task_arithmetic" for remedy in check.remedies)


def test_a_sparsity_at_which_another_branch_kept_the_skill_is_advised_as_it_is(tmp_path: Path) -> None:
    run = with_skill(first_run(), sft_l1b=34 / 64)
    run.deltas = {**run.deltas, "sft-l1b": sparse(5, 0.3, 2e-3)}
    run.proofs["sft-l1b"] = proof()
    plan(run.write(tmp_path), "sft-l1", "sft-l1b")
    check = next(check for check in diagnose(tmp_path).checks if check.found)
    assert check.culprit == "sft-l1"
    assert advice(check, "paft_target_sparsity") == pytest.approx(0.7, abs=0.02)


def test_a_strength_falls_by_the_part_of_the_lost_skill_that_the_interval_allows(tmp_path: Path) -> None:
    check = excess(replace(first_run(), proofs={"sft-l1": proof(LAMBDA)}), tmp_path)
    allowed = SKILL - wilson(36, 64)[0]
    assert advice(check, "paft_l1_lambda") == pytest.approx(LAMBDA * allowed / (SKILL - SPARSE_SKILL), rel=0.05)


@pytest.mark.parametrize("skill", [SKILL, 33 / 64])
def test_a_skill_that_is_there_overrules_a_loss_that_did_not_fall_and_is_not_sure(skill: float, tmp_path: Path) -> None:
    run = with_skill(replace(first_run(), losses={"sft": (1.5, 0.073), "sft-l1": (1.5, 1.2)}), sft_l1=skill)
    check = excess(run, tmp_path)
    assert (check.state, check.confidence) == ("clear", "medium")
    assert "Share of the fall" in check.confidence_reason


def test_answers_to_the_same_items_tell_what_two_standard_errors_do_not(tmp_path: Path) -> None:
    """Ten of 64 items lost and none won: p = 0.002 by McNemar's test, while each share alone is off by 0.17."""
    run = with_skill(first_run(), sft_l1=26 / 64)
    right = [1.0] * 36 + [0.0] * 28
    items = {"sft": {"sft_match": right}, "sft-l1": {"sft_match": [0.0] * 10 + right[10:]}}
    assert excess(run, tmp_path / "errors").state == "clear"
    paired = excess(replace(run, items=items), tmp_path / "items")
    assert paired.state == "found"
    assert "64 items, exact McNemar" in paired.evidence[0].what


def test_of_a_loss_in_nats_less_is_better_and_half_of_what_was_learnt_is_too_much(tmp_path: Path) -> None:
    measures = (held_out("sft_nll", "nll", higher_is_better=False),)
    for own, state in ((0.5, "clear"), (1.5, "found")):
        run = replace(first_run(), measures=measures)
        run.scores = {arm: {"sft_nll": value} for arm, value in (("base", 2.0), ("sft", 0.4), ("sft-l1", own))}
        check = excess(run, tmp_path / state)
        assert check.state == state
        assert check.evidence[0].threshold == pytest.approx(0.8)


def test_a_skill_that_the_twin_has_not_learnt_or_too_few_items_leave_it_to_the_loss(tmp_path: Path) -> None:
    few = replace(first_run(), n={"sft_match": 4})
    for n, run in enumerate((few, with_skill(first_run(), sft=0.02, sft_l1=0.0))):
        check = excess(run, tmp_path / str(n))
        assert check.state == "clear"
        assert check.evidence[0].speaks_for is None
        assert any("on enough items" in missing for missing in check.missing)
        assert check.confidence == "medium"


def test_a_twin_of_another_learning_rate_has_no_say_by_its_scores_either(tmp_path: Path) -> None:
    folder = first_run().write(tmp_path)
    state = folder / "branches" / "sft" / "checkpoint-100" / "trainer_state.json"
    state.write_text(state.read_text().replace('"step": 100', '"step": 300'))
    check = next(check for check in diagnose(folder).checks if check.signature == "excessive L1")
    assert check.state == "clear"
    assert any("trained alike" in missing for missing in check.missing)
