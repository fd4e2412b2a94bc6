"""Differences are judged item by item where items are known, and whoever reads the report is told how, and what was not shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from paft_plugin.evaluation.arms import arm_named
from paft_plugin.evaluation.items import ItemScore, write_items
from paft_plugin.evaluation.results import ArmResult, ItemValues, Measure, Results, gather, read_results
from paft_plugin.report.arm_tables import arm_table, swap_tables, tax_table
from paft_plugin.report.choice import choose
from paft_plugin.report.collect import write_results
from paft_plugin.report.differences import comparisons, difference, silent_measures
from paft_plugin.report.run_report import write_report
from tests.report.runs import branched_run

SKILL = Measure("skill", "task", "acc", "none", True)
GAIN = Measure("preference", "held_out/preference", "gain", "none", True)


def arm(name: str, **values: Sequence[float]) -> ArmResult:
    """An arm with these values of its items."""
    items = {
        measure: ItemValues(
            tuple(f"{place:04}" for place in range(len(each))), np.array(each, float), (None,) * len(each)
        )
        for measure, each in values.items()
    }
    scores = {measure: float(np.mean(each)) for measure, each in values.items()}
    return ArmResult(
        arm=arm_named(name), scores=scores, n={name: len(each) for name, each in values.items()}, items=items
    )


def right(*spans: range) -> list[float]:
    """200 items, of which these are right."""
    return [float(any(place in span for span in spans)) for place in range(200)]


def of(
    *arms: ArmResult, measures: Sequence[Measure] = (SKILL, GAIN), margins: Mapping[str, float] | None = None
) -> Results:
    return gather(measures, arms, ["skill"], ["preference"], margins)


def verdict(results: Results, before: str, after: str, measure: str) -> str:
    one, other = results.arm(before), results.arm(after)
    assert one
    assert other
    found = difference(one, other, results.measure(measure))
    assert found is not None
    return found.verdict


def test_pairs_show_what_two_separate_errors_hide() -> None:
    """8 of 200 items lost and none won: the shares' own errors, .034 each, would show nothing below .096."""
    paired = of(arm("sft", skill=right(range(100))), arm("paft-ties", skill=right(range(92))))
    assert verdict(paired, "sft", "paft-ties", "skill") == "worse"
    alone = [one.model_copy(update={"items": {}, "stderr": {"skill": 0.0354}}) for one in paired.arms]
    assert verdict(of(*alone), "sft", "paft-ties", "skill") == "unclear"


def test_no_difference_is_said_only_where_it_is_proven() -> None:
    # 1 lost and 1 won of 200 lie within 2 points; 6 lost and 6 won do not.
    near, far = right(range(1, 101)), right(range(6, 106))
    results = of(arm("sft", skill=right(range(100))), arm("paft-ties", skill=near), arm("paft-linear", skill=far))
    assert verdict(results, "sft", "paft-ties", "skill") == "equivalent"
    assert verdict(results, "sft", "paft-linear", "skill") == "unclear"
    wider = of(*results.arms, margins={"": 0.05})
    assert verdict(wider, "sft", "paft-linear", "skill") == "equivalent"
    named = of(*results.arms, margins={"": 0.05, "skill": 0.001})
    assert verdict(named, "sft", "paft-ties", "skill") == "unclear"


def test_a_sure_difference_that_does_not_matter_is_equivalent() -> None:
    gains = np.linspace(8, 12, 200)
    results = of(
        arm("dpo", preference=gains), arm("paft-ties", preference=gains + 0.1), arm("sft", preference=gains - 3)
    )
    assert verdict(results, "dpo", "paft-ties", "preference") == "equivalent"
    assert verdict(results, "dpo", "sft", "preference") == "worse"


def test_items_that_differ_or_do_not_make_the_score_are_not_paired(tmp_path: Path) -> None:
    one, other = arm("sft", skill=right(range(100))), arm("paft-ties", skill=right(range(92))[:150])
    found = difference(one, other, SKILL)
    assert found is not None
    assert found.change is None or found.change.method == "unpaired"
    run = branched_run(tmp_path / "run", ["math"], ["taste"], 30)
    file = run / "scores" / "math" / "items.jsonl"
    write_items(file, [ItemScore(measure="math_match", item=f"{place:04}", value=0.0) for place in range(30)])
    write_results(run)
    results = read_results(run)
    assert results is not None
    assert {one.name: set(one.items) for one in results.arms}["math"] == set()
    assert "math_match" in results.arms[0].items


def test_declared_contrasts_are_corrected_and_the_rest_is_exploratory() -> None:
    arms = [
        arm("base", skill=right(), other=right(range(7))),
        arm("sequential", skill=right(range(100)), other=right(range(7))),
    ]
    # Each loses 6 and wins none: p = 0.03125. Of one declared contrast that counts, of four it does not.
    names = ["paft-ties", "paft-linear", "paft-dare_ties", "paft-della"]
    arms += [arm(name, skill=right(range(94)), other=right(range(1))) for name in names]
    measures = (SKILL, Measure("other", "task2", "acc", "none", True))

    def verdicts(results: Results) -> list[list[str | None]]:
        return [[one and one.verdict for one in asked.differences] for asked in comparisons(results, None)]

    few, many = (gather(measures, arms[: 2 + count], ["skill"]) for count in (1, 4))
    assert verdicts(few) == [["worse", "worse"]]
    assert verdicts(many) == [["unclear", "worse"]] * 4
    first = comparisons(many, None)[0].differences[0]
    assert first is not None
    assert first.p == pytest.approx(4 * 0.03125)
    # A question that the scores raised is not declared.
    assert [one.is_declared for one in comparisons(many, many.arm("base"))] == [False, True, True, True, True]


def test_what_tells_nothing_is_said_and_decides_nothing() -> None:
    good, bad = right(range(180)), right(range(20))
    names = ("base", "sft", "dpo", "paft-ties")
    skills = dict(zip(names, (bad, good, bad, good), strict=True))

    def silent(preference: Mapping[str, Sequence[float]], items: int = 200) -> dict[str, str]:
        arms = [arm(name, skill=skills[name][:items], preference=preference[name][:items]) for name in names]
        results = of(*arms, measures=(SKILL, Measure("preference", "pairs", "acc", "none", True)))
        found = silent_measures(results)
        choice = choose(results)
        if set(found) == {"preference"}:
            assert (choice.kind, choice.arm and choice.arm.name) == ("one measure", "sft")
            assert "preference tells nothing here" in choice.explanation
        return found

    assert silent(dict.fromkeys(names, right()))["preference"] == "all 4 arms come to 0.000"
    at_floor = {"base": right(), "sft": right(range(2)), "dpo": right(range(1, 4)), "paft-ties": right(range(3))}
    assert "floor (0.000 to 0.015)" in silent(at_floor)["preference"]
    at_ceiling = {name: [1 - value for value in values] for name, values in at_floor.items()}
    assert "ceiling (0.985 to 1.000)" in silent(at_ceiling)["preference"]
    # An arm that loses what base and branches have tells something; so do swaps behind one average.
    assert silent({**at_ceiling, "paft-ties": right(range(100))}) == {}
    swapped = {name: right(range(20 * place, 20 * place + 20)) for place, name in enumerate(names)}
    assert silent(swapped) == {}
    few = silent({name: right(range(3 * place)) for place, name in enumerate(names)}, items=5)
    assert "it has 5 items" in few["preference"]


def test_forgetting_is_counted_item_by_item(tmp_path: Path) -> None:
    results = of(
        arm("base", skill=right(range(10))),
        arm("sft", skill=right(range(100))),
        arm("paft-ties", skill=right(range(5, 110))),
        measures=(SKILL,),
    )
    swaps = {one.name: one.swaps for one in results.arms}
    assert swaps["paft-ties"]["sft"]["skill"].model_dump() == {"lost": 5, "won": 10, "items": 200}
    assert swaps["paft-ties"]["base"]["skill"].model_dump() == {"lost": 5, "won": 100, "items": 200}
    assert set(swaps["sft"]) == {"base"}
    alone, base = swap_tables(results)
    assert [[cell.text for cell in row.cells] for row in alone.rows] == [
        ["base", "90 lost, 0 won of 200"],
        ["paft-ties", "5 lost, 10 won of 200"],
    ]
    assert base.caption == "Answers that changed from the base"
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json").arms[2].swaps == results.arms[2].swaps


def test_zeros_of_the_base_are_no_shares() -> None:
    """The base's gain over itself is 0 by definition, and certain."""
    results = of(arm("base", preference=[0.0] * 50), arm("dpo", preference=[3.0] * 25 + [5.0] * 25), measures=(GAIN,))
    assert results.arms[0].intervals["preference"] == (0.0, 0.0)
    assert results.arms[1].reach("preference") == pytest.approx(2.0096 / 7, rel=1e-3)


@pytest.mark.parametrize(("skills", "preferences"), [(2, 1), (2, 2), (4, 4)])
def test_any_number_of_branches(skills: int, preferences: int, tmp_path: Path) -> None:
    names = [f"skill{place}" for place in range(skills)], [f"taste{place}" for place in range(preferences)]
    run = branched_run(tmp_path / "run", *names, items=60)
    write_results(run)
    results = read_results(run)
    assert results is not None
    assert results.skills == tuple(f"{name}_match" for name in names[0])
    assert results.preferences == tuple(names[1])
    # What a branch's skill lost in each arm stands in the table; the arm without it lost nearly all of it.
    taxes = tax_table(results)
    assert taxes is not None
    assert [column.heading for column in taxes.columns[1:]] == [*results.skills, *results.preferences]
    without = results.arm("without-skill0-ties")
    assert without is not None
    assert max(without.taxes, key=lambda goal: without.taxes[goal] if goal in results.skills else 0.0) == "skill0_match"
    choice = choose(results)
    assert (choice.arm and choice.arm.name) == "paft-ties"
    asked = comparisons(results, choice.arm)
    assert [one.question for one in asked] == [f"{name} in the fusion by ties" for each in names for name in each]
    page = write_report(run).read_text(encoding="utf-8")
    readme = (run / "README.md").read_text(encoding="utf-8")
    for one in results.arms:
        assert page.count(f">{one.name}<") >= 2
        assert f"| {one.name} " in readme
    assert '<figure id="tax"' in page
    assert "paired t" in page
    assert "Answers that changed from SFT alone" in page
    assert "Answers that changed from SFT alone" in readme
    cells = [cell.whole for row in arm_table(results).rows for cell in row.cells]
    assert all(cell in page and cell in readme for cell in cells)
    assert json.loads((run / "results.json").read_text())["schema"] == 3


def test_the_default_skill_is_one_that_tells_arms_apart() -> None:
    match, nll = (Measure(f"sft_{what}", "held_out/sft", what, "none", what == "match") for what in ("match", "nll"))

    def skills(matched: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
        losses = {"base": 2.0, "sft": 1.0, "paft-ties": 1.2}
        arms = [arm(name, sft_match=matched[name], sft_nll=[loss] * 199 + [loss + 1]) for name, loss in losses.items()]
        return gather((match, nll), arms).skills

    names = ("base", "sft", "paft-ties")
    assert skills({name: right(range(50 * place)) for place, name in enumerate(names)}) == ("sft_match",)
    assert skills({name: right(range(place)) for place, name in enumerate(names)}) == ("sft_nll",)
    assert skills(dict.fromkeys(names, right(range(50)))) == ("sft_nll",)


def test_by_one_measure_too_the_base_is_only_beaten_by_what_is_shown_to_be_better() -> None:
    arms = [
        arm("base", skill=right(range(100))),
        arm("sft", skill=right(range(101))),
        arm("dpo", skill=right(range(50))),
    ]
    choice = choose(gather((SKILL,), arms, ["skill"]))
    assert (choice.kind, choice.arm and choice.arm.name) == ("nothing", "base")
    assert "Equivalent to it: sft." in choice.explanation or "cannot be told apart from sft" in choice.explanation
