"""The analysis of a study finds what was put into it, and chooses nothing on test items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from paft_plugin.evaluation.results import VALIDATION
from paft_plugin.evaluation.statistics import (
    SeedPart,
    Values,
    change_of_seeds,
    change_of_share,
    mean_of_items,
    mean_of_seeds,
)  # fmt: skip
from paft_plugin.study.analysis import Analysis, analyse
from paft_plugin.study.design import StudyArm
from paft_plugin.study.effects import change, mean_score
from paft_plugin.study.fronts import front_of, hypervolume
from paft_plugin.study.scores import MeasureItems, StudyScores, read_study
from tests.study.studies import CONTRASTS, LEVELS, design, write_small


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> StudyScores:
    return read_study(write_small(tmp_path_factory.mktemp("study"), design((1, 2, 3, 4, 5)), counts=MANY))


FEW = {"skill": 24, "preference": 13, "retained": 9}
MANY = {"skill": 2000, "preference": 1000, "retained": 200}


@pytest.fixture(scope="module")
def analysis(scores: StudyScores) -> Analysis:
    return analyse(scores)


def test_known_effects_come_out(analysis: Analysis) -> None:
    assert {one.contrast.name: one.verdict for one in analysis.answers} == {
        "parallel": "better",
        "penalty": "better",
        "penalty-ta": "equivalent",
        "stopped": "better",
    }
    true = LEVELS["ties-l1"][0] - LEVELS["ties"][0]
    low, high = next(one.change.interval for one in analysis.answers if one.contrast.name == "penalty" and one.change)
    assert low < true < high


def test_controls_are_matched_and_judged(analysis: Analysis) -> None:
    rows = {row.name: row for row in analysis.controls}
    assert rows["early_stop"].arm == "stop-20"
    assert rows["early_stop"].answers["ties"].other == "stop-20-ties"
    assert rows["drop"].answers["ties"].verdict == "better"
    assert rows["drop"].like == "sft-l1"


def test_the_best_trial_is_taken(analysis: Analysis) -> None:
    assert analysis.best is not None
    assert analysis.best.name == "ties-l1-2"


def test_every_number_has_its_seeds(analysis: Analysis) -> None:
    for row in analysis.rows:
        for level in row.levels.values():
            assert list(level.seeds) == [1, 2, 3, 4, 5]
            assert level.value == pytest.approx(np.mean(list(level.seeds.values())))
            assert level.interval is not None
            assert level.interval[0] <= level.value <= level.interval[1]


def with_other_test_items(scores: StudyScores) -> StudyScores:
    """The same study with every score of a test item turned round."""
    items = {
        seed: {
            name: kept
            if name.endswith(VALIDATION)
            else replace(kept, arms={arm: 1 - each for arm, each in kept.arms.items()})
            for name, kept in measures.items()
        }
        for seed, measures in scores.items.items()
    }
    seeds = {
        seed: {
            arm: each.model_copy(
                update={"scores": {n: s if n.endswith(VALIDATION) else 1 - s for n, s in each.scores.items()}}
            )
            for arm, each in arms.items()
        }
        for seed, arms in scores.figures.seeds.items()
    }
    return replace(scores, items=items, figures=scores.figures.model_copy(update={"seeds": seeds}))


def test_a_contrast_names_an_arm_and_does_not_choose_it(scores: StudyScores) -> None:
    """`ties` is worse on validation items than `ties-2`."""
    found = analyse(scores)
    rows = {row.name: row for row in found.rows}
    assert {row.name for row in found.main} >= {"ties", "ties-2"}
    assert not rows["ties"].is_chosen
    assert rows["ties-2"].is_chosen


def test_an_arm_that_is_a_way_and_a_control_is_shown_as_the_way(scores: StudyScores) -> None:
    control = StudyArm(name="joint", group="control", control="disjoint", way="ties")
    arms = (control, *scores.design.arms)
    found = analyse(replace(scores, design=scores.design.model_copy(update={"arms": arms})))
    assert next(row for row in found.main if row.name == "joint").group == "way"


def test_a_question_that_comes_to_one_arm_is_no_question(scores: StudyScores) -> None:
    asked = CONTRASTS[0].model_copy(update={"one": "best:ties/*", "other": "best:ties/l1"})
    (found,) = analyse(replace(scores, design=scores.design.model_copy(update={"contrasts": (asked,)}))).answers
    assert found.change is None
    assert found.why == "Both are ties-l1-2."


def test_a_contrast_says_which_seeds_it_is_over(scores: StudyScores) -> None:
    items = {
        seed: {name: without(kept, "sequential") if seed == 3 else kept for name, kept in each.items()}
        for seed, each in scores.items.items()
    }
    found = analyse(replace(scores, items=items))
    assert found.answers[0].seeds == (1, 2, 4, 5)
    assert "parallel: By seeds 1, 2, 4, 5 alone, which have the items of both." in found.notes


@pytest.mark.parametrize("items", [1, 2])
def test_a_measure_of_one_item_is_not_tested(items: int, tmp_path: Path) -> None:
    scores = read_study(write_small(tmp_path, design((1, 2)), counts={**FEW, "skill": items}))
    found = {one.contrast.name: one for one in analyse(scores).answers}
    assert (found["penalty"].change is None) == (items == 1)


def test_nothing_is_chosen_on_test_items(scores: StudyScores, analysis: Analysis) -> None:
    other = analyse(with_other_test_items(scores))
    assert other.taken == analysis.taken
    assert [front.members for front in other.fronts] == [front.members for front in analysis.fronts][
        : len(other.fronts)
    ]
    assert [one.change for one in other.answers] != [one.change for one in analysis.answers]


def test_one_seed_is_judged_by_its_items_and_says_so(tmp_path: Path) -> None:
    scores = read_study(write_small(tmp_path, design((7,))))
    found = analyse(scores)
    before, after = (scores.items[7]["skill"].arms[arm] for arm in ("ties", "ties-l1"))
    assert change(scores, "ties", "ties-l1", "skill") == change_of_share(before, after)
    assert any("one seed only" in note for note in found.notes)
    assert all(front.volume is None or front.volume.interval is None for front in found.fronts)


def test_a_primary_in_nats_counts_by_what_the_branch_gains(tmp_path: Path) -> None:
    levels = {**LEVELS, "sft": (0.80, 0.50, 0.80), "sft-l1": (0.78, 0.50, 0.85)}
    scores = read_study(write_small(tmp_path, design((1, 2), primary=("skill", "retained")), levels))
    zero, best = (mean_score(scores, arm, f"retained{VALIDATION}") for arm in ("base", "sft"))
    skill, retained = (mean_score(scores, "ties", name) for name in ("skill", "retained"))
    assert zero is not None and best is not None and skill is not None and retained is not None  # noqa: PT018
    assert mean_score(scores, "ties", "primary") == pytest.approx((skill + (retained - zero) / (best - zero)) / 2)


def test_where_no_branch_gains_a_loss_is_no_merit(tmp_path: Path) -> None:
    """All branches forget: a share of what the best one `gains` would reward whoever forgets most."""
    scores = read_study(write_small(tmp_path, design((1, 2), primary=("skill", "retained"))))
    assert mean_score(scores, "ties", "primary") is None


def test_a_single_one_of_several_seeds_judges_nothing(tmp_path: Path) -> None:
    """Its items alone would make a question more certain by losing seeds."""
    scores = read_study(write_small(tmp_path, design((1, 2, 3))))
    items = {
        seed: each if seed == 1 else {name: without(kept, "joint") for name, kept in each.items()}
        for seed, each in scores.items.items()
    }
    assert change(scores, "sequential", "joint", "skill") is not None
    assert change(replace(scores, items=items), "sequential", "joint", "skill") is None


def test_no_interval_of_a_share_leaves_what_a_share_can_be(tmp_path: Path) -> None:
    """Of two seeds that differ much, t alone would reach far beyond. Nats have no such bounds."""
    scores = read_study(write_small(tmp_path, design((1, 2))))
    turned = with_other_test_items(scores)
    row = next(
        each for each in analyse(replace(scores, items={1: scores.items[1], 2: turned.items[2]})).rows if each.way
    )
    assert row.levels["primary"].interval == row.levels["skill"].interval == (0.0, 1.0)
    low, high = row.levels["retained"].interval or (0, 0)
    assert low < 0
    assert high > 1


def without(kept: MeasureItems, arm: str) -> MeasureItems:
    return replace(kept, arms={name: values for name, values in kept.arms.items() if name != arm})


def test_without_a_scale_there_is_no_primary(tmp_path: Path) -> None:
    scores = read_study(write_small(tmp_path, design((1, 2), primary=("skill", "retained"))))
    items = {
        seed: {name: kept for name, kept in each.items() if name != f"retained{VALIDATION}"}
        for seed, each in scores.items.items()
    }
    found = analyse(replace(scores, items=items))
    assert all("primary" not in row.levels for row in found.rows)
    assert any("no primary" in note for note in found.notes)
    assert found.answers[0].change is None


def test_a_contrast_that_cannot_be_tested_counts_for_holm(tmp_path: Path) -> None:
    study = design(
        (1, 2), contrasts=(*CONTRASTS, CONTRASTS[0].model_copy(update={"name": "no", "one": "best:ties/none"}))
    )
    *others, untested = analyse(read_study(write_small(tmp_path, study))).answers
    assert untested.change is None
    assert untested.why
    smallest = min(one.change.p for one in others if one.change)
    assert min(one.p or 1 for one in others) == pytest.approx(min(1, len(study.contrasts) * smallest))


# --- intervals over seeds and items -------------------------------------------------------------------------------------


def seeds_of(values: Sequence[Values], units: Sequence[NDArray[np.int64]] | None = None) -> list[list[SeedPart]]:
    """Seeds that answered one measure's items, all the same ones unless `units` says otherwise."""
    return [[SeedPart(own, np.arange(len(own)) if units is None else units[place])] for place, own in enumerate(values)]


def coverage(draw: Callable[[np.random.Generator], list[list[SeedPart]]], repetitions: int = 400) -> float:
    """How often the interval of a mean that is truly 0 holds it."""
    generator = np.random.default_rng(0)
    ends = [mean_of_items(draw(generator)).interval for _ in range(repetitions)]
    return sum(low <= 0 <= high for low, high in ends) / repetitions


ENOUGH = 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5
"""What 400 repetitions hardly ever fall short of, where the coverage is 95 %."""


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_items"), [(0.0, 0.0), (0.3, 0.1), (0.05, 0.5), (0.0, 1.0)], ids=["noise", "seeds", "both", "items"]
)
@pytest.mark.parametrize("items", [10, 100])
def test_intervals_cover_with_few_seeds(seeds: int, of_seeds: float, of_items: float, items: int) -> None:
    def draw(generator: np.random.Generator) -> list[list[SeedPart]]:
        normal = generator.standard_normal
        return seeds_of(of_seeds * normal((seeds, 1)) + of_items * normal(items) + normal((seeds, items)))

    assert coverage(draw) > ENOUGH


@pytest.mark.parametrize("swapped", [1, 60, 200])
def test_intervals_cover_where_seeds_share_a_part_of_their_items(swapped: int) -> None:
    def draw(generator: np.random.Generator) -> list[list[SeedPart]]:
        hard = generator.standard_normal(200 + 4 * swapped)  # each seed but the first has some items of its own
        units = [np.r_[: 200 - swapped, 200 + (k - 1) * swapped : 200 + k * swapped] for k in range(1, 5)]
        own = [np.arange(200), *units]
        return seeds_of([hard[which] + 0.3 * generator.standard_normal(200) for which in own], own)

    assert coverage(draw) > ENOUGH


def test_two_measures_of_the_same_items_are_no_more_than_one() -> None:
    values = np.random.default_rng(4).standard_normal((3, 80)) + 0.4 * np.random.default_rng(5).standard_normal(80)
    units = np.arange(80)
    twice = mean_of_items([[SeedPart(own, units, 0.5), SeedPart(own, units, 0.5)] for own in values])
    apart = mean_of_items([[SeedPart(own, units, 0.5), SeedPart(own, units + 80, 0.5)] for own in values])
    assert twice.interval == pytest.approx(mean_of_items(seeds_of(list(values))).interval)
    assert twice.of_items == pytest.approx(2 * apart.of_items)


def test_seeds_with_items_of_their_own_are_judged_by_their_means() -> None:
    draw = np.random.default_rng(1)
    values = list(1.5 + draw.standard_normal((4, 1)) + draw.standard_normal((4, 50)))
    p = float(stats.ttest_1samp([each.mean() for each in values], 0).pvalue)
    assert mean_of_items(seeds_of(values, list(np.arange(200).reshape(4, 50)))).p == pytest.approx(p)
    assert mean_of_seeds([float(each.mean()) for each in values]).p == pytest.approx(p)


def test_p_is_the_level_whose_interval_reaches_zero() -> None:
    found = mean_of_items(seeds_of(list(0.3 + np.random.default_rng(2).standard_normal((3, 60)))))
    assert found.half(1 - found.p) == pytest.approx(abs(found.value))
    assert (found.p <= 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)


def test_seeds_that_agree_by_chance_leave_the_spread_of_their_items() -> None:
    one = np.arange(100) % 2.0
    found = mean_of_items(seeds_of([one, 1 - one]))
    assert found.of_seeds == 0
    t = stats.t.ppf(0.975, 99)
    assert mean_of_items(seeds_of([one, one])).half() == pytest.approx(t * one.std(ddof=1) / 10)
    apart = seeds_of([one, one], [np.arange(100), np.arange(100, 200)])
    assert mean_of_items(apart).half() == pytest.approx(t * one.std(ddof=1) / 200**0.5)


@pytest.mark.parametrize("items", [6, 10, 200])
def test_arms_that_answer_all_alike_are_known_as_well_as_from_one_seed(items: int) -> None:
    alike = change_of_seeds(seeds_of([np.zeros(items)] * 2))
    of_one = change_of_share(np.zeros(items), np.zeros(items))
    assert alike.interval == pytest.approx(of_one.interval, rel=0.05 if items > 100 else 0.4)
    assert alike.interval[1] >= of_one.interval[1]
    assert alike.p == pytest.approx(1)


def test_an_interval_of_clusters_is_as_wide_as_they_differ() -> None:
    draw = np.random.default_rng(6)
    rates = 0.05 + 0.01 * draw.standard_normal(20)
    won = (draw.random((3, 20, 50)) < rates[None, :, None]).astype(np.float64).reshape(3, 1000)
    found = mean_of_items(seeds_of(list(won), [np.arange(1000) // 50] * 3))
    assert found.half() < 0.03


def test_the_same_rows_twice_are_as_wide_as_once_where_nothing_differs() -> None:
    nothing, units = np.zeros(10), np.arange(10)
    once = mean_of_items([[SeedPart(nothing, units)]] * 2)
    twice = mean_of_items([[SeedPart(nothing, units, 0.5), SeedPart(nothing, units, 0.5)]] * 2)
    assert twice.half() == pytest.approx(once.half())


def test_a_primary_of_one_measure_is_that_measure_with_one_seed(tmp_path: Path) -> None:
    scores = read_study(write_small(tmp_path, design((1,), primary=("skill",)), counts=FEW))
    rows = {row.name: row for row in analyse(scores).rows}
    assert rows["ties"].levels["primary"].interval == rows["ties"].levels["skill"].interval
    assert change(scores, "ties", "joint", "primary") == change(scores, "ties", "joint", "skill")


@pytest.mark.parametrize("items", [1, 2, 5, 6, 12])
def test_few_items_show_no_more_than_a_sign_test_however_many_seeds_agree(items: int) -> None:
    one = change_of_share(np.zeros(items), np.ones(items))
    values = [np.r_[np.ones(items), np.zeros(40)]] * 3
    found = change_of_seeds(seeds_of(values))
    assert found.p >= one.p * (1 - 1e-6)
    assert (found.p <= 0.05) == (found.interval[0] > 0)


def test_clusters_make_items_count_less() -> None:
    draw = np.random.default_rng(3)
    values = list(np.repeat(draw.standard_normal(20), 10) + 0.1 * draw.standard_normal((3, 200)))
    alone, clustered = mean_of_items(seeds_of(values)), mean_of_items(seeds_of(values, [np.arange(200) // 10] * 3))
    assert clustered.value == pytest.approx(alone.value)
    assert clustered.of_items > 5 * alone.of_items


# --- hypervolume --------------------------------------------------------------------------------------------------------


def test_hypervolume_is_what_monte_carlo_finds() -> None:
    draw = np.random.default_rng(0)
    points = draw.random((7, 3))
    thrown = draw.random((400_000, 3))
    covered = np.any(np.all(thrown[:, None, :] <= points, axis=2), axis=1).mean()
    assert hypervolume([tuple(point) for point in points]) == pytest.approx(covered, abs=4 * (0.25 / 400_000) ** 0.5)


def test_a_penalty_is_judged_by_the_front_of_all_that_its_delta_is_fused_to(
    scores: StudyScores, analysis: Analysis
) -> None:
    (curve,) = analysis.curves
    assert set(curve.volumes) == {0.0, 1e-4}
    every, one = (front_of(scores, names).volume for names in (["ties-l1", "ta-l1"], ["ties-l1"]))
    assert curve.volumes[1e-4] == every
    assert every.value >= one.value > curve.volumes[0.0].value, "a point more covers no less"


def test_hypervolume_of_simple_fronts() -> None:
    assert hypervolume([(1.0, 1.0, 1.0)]) == 1.0
    assert hypervolume([(1.0, 0.5), (0.5, 1.0), (0.2, 0.2)]) == pytest.approx(0.75)
    assert hypervolume([(-1.0, 0.5, 1.0)]) == 0.0
    assert hypervolume([]) == 0.0
