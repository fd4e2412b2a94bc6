"""The alignment tax: who pays it, in what, and relative to whom."""

from __future__ import annotations

import pytest

from paft_plugin.evaluation.arms import Arm, arm_named
from paft_plugin.evaluation.results import ArmResult, Measure, alignment_tax, gather

SKILL = Measure("sums", "sums", "acc", "none", True)
SKILLS = {"base": 0.0, "sft": 0.9, "sft-l1": 0.8, "kto": 0.1, "sequential": 0.7, "paft-ties": 1.0}


def result(arm: str, scores: dict[str, float]) -> ArmResult:
    return ArmResult(arm=arm_named(arm), scores=scores)


def results(skills: dict[str, float]) -> list[ArmResult]:
    scored = [result(arm, {"sums": skill, "other": 0.5}) for arm, skill in skills.items()]
    return [*scored, result("paft-linear", {})]


def without(*arms: str) -> dict[str, float]:
    return {arm: skill for arm, skill in SKILLS.items() if arm not in arms}


def test_it_is_what_an_arm_that_combines_both_loses_of_the_skill() -> None:
    assert alignment_tax(results(SKILLS), SKILL) == pytest.approx({"sequential": 0.2, "paft-ties": -0.1})


def test_without_the_dense_branch_the_sparse_one_is_the_reference() -> None:
    expected = {"sequential": 0.1, "paft-ties": -0.2}
    assert alignment_tax(results(without("sft")), SKILL) == pytest.approx(expected)
    assert alignment_tax(results(without("sft", "sft-l1")), SKILL) == {}
    unmeasured = [*results(without("sft")), result("sft", {"other": 1.0})]
    assert alignment_tax(unmeasured, SKILL) == pytest.approx(expected)


def test_of_a_measure_that_is_better_when_lower_more_is_a_loss() -> None:
    perplexity = Measure("sums", "sums", "perplexity", "none", False)
    assert alignment_tax(results(SKILLS), perplexity) == pytest.approx({"sequential": -0.2, "paft-ties": 0.1})


def test_arms_have_one_only_if_a_measure_stands_for_the_skill() -> None:
    measures = [SKILL, Measure("other", "other", "acc", "none", True)]
    assert not any(arm.taxes for arm in gather(measures, results(SKILLS)).arms)
    of_skill = {arm.name: arm.taxes["sums"] for arm in gather(measures, results(SKILLS), ["sums"]).arms if arm.taxes}
    assert of_skill == alignment_tax(results(SKILLS), SKILL)


def test_neither_another_form_of_a_branch_nor_a_control_is_the_reference() -> None:
    dense = Arm(name="sft", kind="branch", role="sft")
    beside = [
        dense.model_copy(update={"name": "sft-long", "beside": True}),
        dense.model_copy(update={"name": "pruned", "beside": True, "control": "prune"}),
    ]
    better = [ArmResult(arm=arm, scores={"sums": 1.0}) for arm in beside]
    assert alignment_tax([*better, *results(SKILLS)], SKILL) == alignment_tax(results(SKILLS), SKILL)
    assert alignment_tax([*better, *results(without("sft", "sft-l1"))], SKILL)["sequential"] == pytest.approx(0.3)
    assert alignment_tax([better[1], *results(without("sft", "sft-l1"))], SKILL) == {}
