"""The alignment tax: who pays it, in what, and relative to whom."""

from __future__ import annotations

import pytest

from paft_plugin.evaluation.results import ArmResult, Comparison, Measure, alignment_tax

SKILL = Measure("sums", "sums", "acc", "none", True)
SKILLS = {"base": 0.0, "sft": 0.9, "sft-l1": 0.8, "kto": 0.1, "sequential": 0.7, "paft-ties": 1.0}
BRANCHES = frozenset({"sft", "sft-l1", "kto"})


def results(skills: dict[str, float]) -> list[ArmResult]:
    return [ArmResult(arm, {"sums": skill, "other": 0.5}) for arm, skill in skills.items()] + [ArmResult("paft-linear")]


def without(*arms: str) -> dict[str, float]:
    return {arm: skill for arm, skill in SKILLS.items() if arm not in arms}


def test_it_is_what_an_arm_that_combines_both_loses_of_the_skill() -> None:
    assert alignment_tax(results(SKILLS), SKILL, BRANCHES) == pytest.approx({"sequential": 0.2, "paft-ties": -0.1})


def test_without_the_dense_branch_the_sparse_one_is_the_reference() -> None:
    expected = {"sequential": 0.1, "paft-ties": -0.2}
    assert alignment_tax(results(without("sft")), SKILL, BRANCHES) == pytest.approx(expected)
    assert alignment_tax(results(without("sft", "sft-l1")), SKILL, BRANCHES) == {}
    unmeasured = [*results(without("sft")), ArmResult("sft", {"other": 1.0})]
    assert alignment_tax(unmeasured, SKILL, BRANCHES) == pytest.approx(expected)


def test_of_a_measure_that_is_better_when_lower_more_is_a_loss() -> None:
    perplexity = Measure("sums", "sums", "perplexity", "none", False)
    assert alignment_tax(results(SKILLS), perplexity, BRANCHES) == pytest.approx({"sequential": -0.2, "paft-ties": 0.1})


def test_a_comparison_has_one_only_if_a_measure_stands_for_the_skill() -> None:
    measures = [SKILL, Measure("other", "other", "acc", "none", True)]
    assert Comparison(measures, results(SKILLS), BRANCHES).alignment_tax() == {}
    of_skill = Comparison(measures, results(SKILLS), BRANCHES, skill="sums").alignment_tax()
    assert of_skill == alignment_tax(results(SKILLS), SKILL, BRANCHES)


def test_thresholds_are_those_of_any_arm_in_order() -> None:
    arms = [
        ArmResult("sft", sparsity={"0.001": 1.0, "1e-06": 0.1}),
        ArmResult("base"),
        ArmResult("x", sparsity={"1e-05": 0.5}),
    ]
    assert Comparison([SKILL], arms).thresholds == ["1e-06", "1e-05", "0.001"]
