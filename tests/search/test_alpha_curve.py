"""Which point is taken on the way from SFT to preferences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from paft_plugin.evaluation.results import Measure
from paft_plugin.search.alpha_curve import AlphaCurve, AlphaPoint, choose_point, grid, usable_goals

MEASURES = {
    "skill": Measure("skill", "t", "acc", "none", higher_is_better=True),
    "match": Measure("match", "held_out/sft", "match", "none", higher_is_better=True),
    "nll": Measure("nll", "held_out/sft", "nll", "none", higher_is_better=False),
    "preference": Measure("preference", "held_out/preference", "gain", "none", higher_is_better=True),
}
ENDS = {"skill": 0.0, "preference": 1.0}


def points(**scores: Sequence[float]) -> list[AlphaPoint]:
    count = len(next(iter(scores.values())))
    return [
        AlphaPoint(alpha=alpha, scores={name: values[place] for name, values in scores.items()})
        for place, alpha in enumerate(grid(count))
    ]


def test_the_grid_has_both_ends_exactly() -> None:
    assert grid(11)[0] == 0.0
    assert grid(11)[-1] == 1.0
    assert grid(11)[3] == 0.3
    assert grid(2) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("skill", "preference", "taken"),
    [
        ([1.0, 0.9, 0.8, 0.2, 0.0], [0.0, 1.0, 9.0, 9.5, 10.0], 0.5),  # .8 of the skill, .9 of the preference
        ([1.0, 1.0, 0.1, 0.0, 0.0], [0.0, 8.0, 9.0, 9.5, 10.0], 0.25),  # a cliff after it
        ([1.0, 0.9, 0.9, 0.9, 0.0], [0.0, 9.0, 9.0, 9.0, 10.0], 0.5),  # alike: the middle
    ],
)
def test_the_point_keeps_most_of_what_each_branch_gains(
    skill: list[float], preference: list[float], taken: float
) -> None:
    way = points(skill=skill, preference=preference)
    assert choose_point(way, {"skill": 0.0, "preference": 0.0}, ENDS) == taken


def test_shares_count_from_the_base_whatever_the_unit_and_the_direction() -> None:
    way = points(nll=[1.0, 1.2, 2.0], preference=[-1.0, 20.0, 24.0])
    base = {"nll": 3.0, "preference": 4.0}
    goals, notes = usable_goals(way, base, {"nll": 0.0, "preference": 1.0}, MEASURES)
    assert (goals, notes) == ({"nll": 0.0, "preference": 1.0}, [])
    assert choose_point(way, base, goals) == 0.5  # .9 and .8


def test_a_goal_on_which_its_branch_gains_nothing_chooses_nothing_and_is_said() -> None:
    way = points(skill=[0.5, 0.5, 0.5], preference=[0.0, 1.0, 2.0])
    goals, notes = usable_goals(way, {"skill": 0.5, "preference": 0.0}, ENDS, MEASURES)
    assert goals == {"preference": 1.0}
    assert notes == ["skill: the SFT branch gains nothing on validation items, so no point is chosen by it."]
    assert choose_point(way, {}, {}) == 0.5


def test_the_likelihood_stands_in_for_right_answers_that_nobody_gains() -> None:
    way = points(match=[0.0, 0.0], nll=[2.0, 3.0])
    assert usable_goals(way, {"match": 0.0, "nll": 3.0}, {"match": 0.0}, MEASURES) == ({"nll": 0.0}, [])
    way = points(match=[0.5, 0.0], nll=[2.0, 3.0])
    assert usable_goals(way, {"match": 0.0, "nll": 3.0}, {"match": 0.0}, MEASURES) == ({"match": 0.0}, [])


def test_the_file_comes_back_as_it_was(tmp_path: Path) -> None:
    way = points(skill=[1.0, 0.5], preference=[0.0, 2.0])
    curve = AlphaCurve(
        arm="paft-alpha",
        measures=tuple(MEASURES.values()),
        goals=ENDS,
        base={"skill": 0.0},
        points=tuple(way),
        chosen=1.0,
        items={"skill": 50},
    )
    curve.write(tmp_path / "alpha.json")
    assert AlphaCurve.read(tmp_path / "alpha.json") == curve
    assert curve.point is curve.points[1]
