"""The arm that the report names follows from the rule that it shows, and never from chance."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from paft_plugin.evaluation.arms import Arm, arm_named
from paft_plugin.evaluation.results import ArmResult, Measure, Results, standard_error
from paft_plugin.report.choice import choose
from paft_plugin.report.differences import comparisons, difference

MEASURES = tuple(
    Measure(name, f"paft_{name}", "acc", "none", True, 0.02) for name in ("skill", "preference", "retained")
)


def result(name: str, scores: dict[str, float], stderr: dict[str, float] | None = None, **more: Any) -> ArmResult:
    return ArmResult(arm=arm_named(name), scores=scores, stderr=stderr or {}, **more)


def changed(whole: Results, **changes: Any) -> Results:
    return whole.model_copy(update=changes)


def results(scores: dict[str, Sequence[float]], items: int = 200, **changes: Any) -> Results:
    names = [measure.name for measure in MEASURES]

    def arm(name: str, values: Sequence[float]) -> ArmResult:
        errors = [math.sqrt(value * (1 - value) / (items - 1)) for value in values]
        counts = dict.fromkeys(names[: len(values)], items)
        return result(name, dict(zip(names, values, strict=False)), dict(zip(names, errors, strict=False)), n=counts)

    whole = Results(
        measures=MEASURES,
        skills=("skill",),
        preferences=("preference",),
        thresholds=("1e-05",),
        arms=tuple(arm(name, values) for name, values in scores.items()),
    )
    return changed(whole, **changes)


CLEAR = {
    "base": (0.2, 0.2, 1.0),
    "sft": (0.98, 0.25, 1.0),
    "dpo": (0.2, 0.97, 0.9),
    "sequential": (0.6, 0.97, 1.0),
    "parallel-ties": (0.97, 0.6, 1.0),
    "paft-ties": (0.97, 0.9, 1.0),
}


def test_the_best_preference_of_the_arms_that_keep_the_skill() -> None:
    choice = choose(results(CLEAR))
    assert (choice.kind, choice.arm and choice.arm.name, choice.tied) == ("clear", "paft-ties", {})
    assert choice.headline == "Use paft-ties"
    assert [(cost.measure.name, cost.before.name, cost.verdict) for cost in choice.costs] == [
        ("skill", "sft", "unclear"),
        ("preference", "sequential", "worse"),
        ("retained", "base", "equivalent"),
    ]


def test_what_was_merged_in_memory_alone_is_not_recommended() -> None:
    whole = results(CLEAR)
    arms = [
        one.model_copy(update={"arm": one.arm.model_copy(update={"in_memory": one.name == "paft-ties"})})
        for one in whole.arms
    ]
    choice = choose(changed(whole, arms=tuple(arms)))
    assert choice.arm is not None
    assert "paft-ties" not in (choice.arm.name, *choice.tied)


def test_what_may_be_chance_is_tied_and_said_to_be() -> None:
    choice = choose(results(CLEAR | {"paft-linear": (0.98, 0.89, 1.0)}))
    assert (choice.kind, choice.arm and choice.arm.name) == ("tied", "paft-ties")
    assert choice.tied == {"paft-linear": "not told apart"}
    assert "cannot be told apart from paft-linear in skill with 200 items, which would show" in choice.explanation


def test_a_tied_arm_that_loses_elsewhere_is_dropped() -> None:
    choice = choose(results(CLEAR | {"paft-dare_ties": (0.97, 0.91, 0.8)}))
    assert (choice.arm and choice.arm.name, choice.tied) == ("paft-ties", {})


def test_where_no_arm_has_both_it_says_so_and_names_the_nearest() -> None:
    choice = choose(results({name: CLEAR[name] for name in ("base", "sft", "dpo", "sequential")}))
    assert (choice.kind, choice.arm and choice.arm.name) == ("trade", "sequential")
    assert choice.headline == "No arm has both; sequential is nearest"
    assert "0.980" in choice.explanation
    assert "0.970" in choice.explanation


def test_where_nothing_is_distinguishable_it_says_so() -> None:
    scores = {name: (0.5 + place / 1000, 0.5 + place / 1000, 0.5) for place, name in enumerate(CLEAR)}
    choice = choose(results(scores))
    assert (choice.kind, choice.arm and choice.arm.name) == ("nothing", "base")
    assert choice.headline == "Nothing beats the base model"
    without_base = [name for name in scores if name != "base"]
    without = choose(results({name: scores[name] for name in without_base}))
    assert (without.kind, len(without.tied)) == ("tied", len(scores) - 2)
    assert "which is no proof of none" in without.explanation
    assert "any will do" in choose(results({name: scores[name] for name in without_base}, items=100_000)).explanation


def test_without_an_sft_arm_the_best_skill_is_the_reference() -> None:
    choice = choose(results({name: values for name, values in CLEAR.items() if name != "sft"}))
    assert (choice.arm and choice.arm.name) == "paft-ties"
    assert "the best SFT arm" not in choice.explanation


@pytest.mark.parametrize(("role", "best"), [("skill", "sft"), ("preference", "dpo")])
def test_with_one_measure_named_it_alone_decides(role: str, best: str) -> None:
    goals = {"skills": (), "preferences": (), f"{role}s": (role,)}
    choice = choose(results(CLEAR, items=2000, **goals))
    assert (choice.kind, choice.arm and choice.arm.name) == ("one measure", best)


def test_without_a_measure_or_a_score_no_arm_is_named() -> None:
    assert choose(results(CLEAR, skills=(), preferences=())).arm is None
    assert choose(results({"sft": (0.9,), "dpo": (0.1,)})).arm is None


def test_among_equals_the_sparsest() -> None:
    equal = results({"parallel-ties": CLEAR["paft-ties"], "paft-ties": CLEAR["paft-ties"], "sft": CLEAR["sft"]})
    shares = {"parallel-ties": 0.2, "paft-ties": 0.4, "sft": 0.0}
    sparse = changed(
        equal, arms=tuple(arm.model_copy(update={"sparsity": {"1e-05": shares[arm.name]}}) for arm in equal.arms)
    )
    chosen = choose(sparse).arm
    assert chosen is not None
    assert chosen.name == "paft-ties"


def random_results(seed: int) -> Results:
    rng = random.Random(seed)
    names = ["base", "sft", "sft-l1", "dpo", "sequential", "parallel-ties", "paft-ties", "paft-linear"]
    return results({name: [rng.randint(0, 100) / 100 for _ in MEASURES] for name in names}, items=rng.choice([50, 500]))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_scores(seed: int) -> None:
    found = random_results(seed)
    choice = choose(found)
    assert choice.arm is not None

    # The order of the arms does not matter,
    assert choose(changed(found, arms=found.arms[::-1])).headline == choice.headline
    # nor which way a measure counts,
    turned = tuple(
        arm.model_copy(update={"scores": {**arm.scores, "preference": 1 - arm.scores["preference"]}})
        for arm in found.arms
    )
    less = (MEASURES[0], dataclasses.replace(MEASURES[1], higher_is_better=False), MEASURES[2])
    assert choose(changed(found, arms=turned, measures=less)).headline == choice.headline
    # an arm that is worse in everything changes nothing,
    worst = result("paft-worst", dict.fromkeys(("skill", "preference", "retained"), -1.0))
    assert choose(changed(found, arms=(*found.arms, worst))).headline == choice.headline
    # and the skill is kept, unless the headline says that it is not.
    if choice.kind in ("clear", "tied"):
        sft = max((found.arm("sft"), found.arm("sft-l1")), key=lambda arm: arm.scores["skill"] if arm else 0)
        assert sft is not None
        kept = difference(sft, choice.arm, MEASURES[0])
        assert kept is not None
        assert kept.verdict != "worse"


def test_a_score_of_exactly_one_is_not_certain() -> None:
    def error(score: float, stderr: dict[str, float] | None, n: dict[str, int]) -> float | None:
        return standard_error(result("sft", {"skill": score}, stderr, n=n), "skill")

    assert error(1.0, {"skill": 0.0}, {"skill": 100}) == pytest.approx(math.sqrt(101 / 102 * (1 / 102) / 102))
    assert error(1.0, {"skill": 0.0}, {}) == 0.0
    assert error(1.0, None, {}) is None
    assert error(7.5, {"skill": 0.0}, {"skill": 100}) == 0.0  # no share: nothing is known of its spread


def test_without_items_a_difference_counts_beyond_its_interval() -> None:
    def verdict(value: float, higher_is_better: bool = True) -> str:
        arms = [result(name, {"m": score}, {"m": 0.03}) for name, score in (("a", 0.5), ("b", 0.5 + value))]
        found = difference(arms[0], arms[1], Measure("m", "task", "acc", "none", higher_is_better))
        assert found is not None
        assert found.change is not None
        assert found.change.method == "unpaired"
        return found.verdict

    # 1.96 · 0.03 · √2 = 0.0832
    assert [verdict(value) for value in (0.083, -0.083, 0.084, -0.084)] == ["unclear", "unclear", "better", "worse"]
    assert [verdict(value, higher_is_better=False) for value in (0.09, -0.09)] == ["worse", "better"]


def test_comparisons_are_those_that_the_arms_allow_and_the_chosen_arm_comes_first() -> None:
    found = results({**CLEAR, "sft-l1": (0.97, 0.2, 1.0), "paft-linear": (0.9, 0.9, 1.0)})
    asked = comparisons(found, found.arm("paft-ties"))
    assert [(one.before.name, one.after.name) for one in asked] == [
        ("sequential", "paft-ties"),
        ("sft", "sft-l1"),
        ("sft", "sequential"),
        ("parallel-ties", "paft-ties"),
        ("sequential", "paft-linear"),
    ]
    assert [change and change.verdict for change in asked[2].differences] == ["worse", "better", "equivalent"]
    assert not comparisons(results({"base": (0.1, 0.1, 0.1)}), None)


def test_a_control_is_not_chosen_and_of_many_forms_of_a_branch_the_luckiest_is_no_reference() -> None:
    def beside(name: str, control: str | None = None, role: str = "sft") -> Arm:
        return Arm.model_validate({"name": name, "kind": "branch", "role": role, "beside": True, "control": control})

    forms = {"sft-hot": (1.0, 0.2, 1.0), "pruned": (0.99, 0.99, 1.0)}
    arms = {"sft-hot": beside("sft-hot"), "pruned": beside("pruned", "prune")}
    whole = results({**CLEAR, **forms})
    whole = changed(
        whole, arms=tuple(arm.model_copy(update={"arm": arms.get(arm.name, arm.arm)}) for arm in whole.arms)
    )
    choice = choose(whole)
    assert choice.arm is not None
    assert choice.arm.name == "paft-ties"
    assert choice.costs[0].before.name == "sft"
