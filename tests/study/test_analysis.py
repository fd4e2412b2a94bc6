"""The analysis of a study finds what was put into it, and chooses nothing on test items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from paft_plugin.evaluation.results import VALIDATION
from paft_plugin.evaluation.statistics import change_of_share, mean_of_seeds
from paft_plugin.study.analysis import Analysis, analyse
from paft_plugin.study.effects import change, mean_score
from paft_plugin.study.fronts import hypervolume
from paft_plugin.study.scores import MeasureItems, StudyScores, read_study
from tests.study.studies import CONTRASTS, LEVELS, design, write_small


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> StudyScores:
    return read_study(write_small(tmp_path_factory.mktemp("study"), design((1, 2, 3, 4, 5)), counts=MANY))


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


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_items"), [(0.0, 0.0), (0.3, 0.1), (0.05, 0.5), (0.0, 1.0)], ids=["noise", "seeds", "both", "items"]
)
def test_intervals_cover_with_few_seeds(seeds: int, of_seeds: float, of_items: float) -> None:
    draw, items, repetitions = np.random.default_rng(0), 100, 400
    hits = 0
    for _ in range(repetitions):
        values = (
            of_seeds * draw.standard_normal((seeds, 1))
            + of_items * draw.standard_normal(items)
            + draw.standard_normal((seeds, items))
        )
        low, high = mean_of_seeds(list(values)).interval
        hits += low <= 0 <= high
    assert hits / repetitions > 0.95 - 3 * (0.95 * 0.05 / repetitions) ** 0.5


def test_seeds_with_items_of_their_own_are_judged_by_their_means() -> None:
    draw = np.random.default_rng(1)
    values = list(1.5 + draw.standard_normal((4, 1)) + draw.standard_normal((4, 50)))
    means = np.array([each.mean() for each in values])
    assert mean_of_seeds(values, None).p == pytest.approx(float(stats.ttest_1samp(means, 0).pvalue))


def test_p_is_the_level_whose_interval_reaches_zero() -> None:
    found = mean_of_seeds(list(0.3 + np.random.default_rng(2).standard_normal((3, 60))))
    assert found.half(1 - found.p) == pytest.approx(abs(found.value))
    assert (found.p <= 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)


def test_seeds_that_agree_by_chance_leave_the_spread_of_their_items() -> None:
    one = np.arange(100) % 2.0
    found = mean_of_seeds([one, 1 - one])
    assert found.of_seeds == 0
    assert mean_of_seeds([one, one]).half() == pytest.approx(1.96 * one.std(ddof=1) / 10, rel=1e-4)
    assert mean_of_seeds([one, one, one + 1e-9], None).half() > 1.96 * one.std() / 20


def test_clusters_make_items_count_less() -> None:
    draw = np.random.default_rng(3)
    values = list(np.repeat(draw.standard_normal(20), 10) + 0.1 * draw.standard_normal((3, 200)))
    sources = [str(place // 10) for place in range(200)]
    alone, clustered = mean_of_seeds(values), mean_of_seeds(values, sources)
    assert clustered.value == pytest.approx(alone.value)
    assert clustered.of_items > 5 * alone.of_items


# --- hypervolume --------------------------------------------------------------------------------------------------------


def test_hypervolume_is_what_monte_carlo_finds() -> None:
    draw = np.random.default_rng(0)
    points = draw.random((7, 3))
    thrown = draw.random((400_000, 3))
    covered = np.any(np.all(thrown[:, None, :] <= points, axis=2), axis=1).mean()
    assert hypervolume([tuple(point) for point in points]) == pytest.approx(covered, abs=4 * (0.25 / 400_000) ** 0.5)


def test_hypervolume_of_simple_fronts() -> None:
    assert hypervolume([(1.0, 1.0, 1.0)]) == 1.0
    assert hypervolume([(1.0, 0.5), (0.5, 1.0), (0.2, 0.2)]) == pytest.approx(0.75)
    assert hypervolume([(-1.0, 0.5, 1.0)]) == 0.0
    assert hypervolume([]) == 0.0
