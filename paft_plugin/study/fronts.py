"""Of each way of combining branches the trials that nothing beats on validation, and how much of the goals they cover on test.

Every goal is scaled so that 0 is the reference point: skill and preference from what the base has (0) to what the best branch
has (1); what is retained as the share of what the base has, averaged over its measures, of a measure in nats exp(base − arm),
which is the base's perplexity by the arm's. The hypervolume is that of all that some trial of the front is at least as good as.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paft_plugin.evaluation.results import VALIDATION
from paft_plugin.evaluation.statistics import mean_of_seeds
from paft_plugin.search.report import pareto_front
from paft_plugin.study.effects import Level, ends, mean_score, seed_means
from paft_plugin.study.scores import StudyScores

GOALS = ("skill", "preference", "retained")
Point = tuple[float, ...]


@dataclass(frozen=True)
class Front:
    """The front of one way of combining, in one form."""

    way: str
    form: str
    trials: tuple[str, ...]
    """All that were tried."""
    members: tuple[str, ...]
    """Those that no other beats on validation items."""
    goals: tuple[str, ...]
    """Of `GOALS`, those that were measured on both kinds of items."""
    volume: Level | None
    """On test items; its interval is over seeds, so there is none of one seed."""
    points: tuple[Point, ...] = ()
    """Of the members, the scaled means on test items."""


def hypervolume(points: Sequence[Point]) -> float:
    """The volume between 0 and `points`: of all that is no better in anything than some point. Exact, in any dimensions.

    The points' coordinates cut the space into boxes; each is covered as a whole, or not at all.
    """
    corners = np.maximum(np.array(points, dtype=np.float64), 0.0)
    if not corners.size:
        return 0.0
    edges = [np.unique(np.append(column, 0.0)) for column in corners.T]
    covered: NDArray[np.bool_] = np.zeros([len(each) - 1 for each in edges], dtype=bool)
    for corner in corners:
        covered[tuple(slice(0, np.searchsorted(each, value)) for each, value in zip(edges, corner, strict=True))] = True
    volume = covered.astype(np.float64)
    for each in reversed(edges):
        volume = volume @ np.diff(each)
    return float(volume)


def fronts(scores: StudyScores) -> list[Front]:
    """Of every way and form with a trial that all seeds have, in the design's order."""
    trials: dict[tuple[str, str], list[str]] = {}
    for arm in scores.design.arms:
        if arm.group == "way":
            trials.setdefault((arm.way or "", arm.form or ""), []).append(arm.name)
    return [found for key, names in trials.items() if (found := front_of(scores, names, *key)) is not None]


def measured_goals(scores: StudyScores) -> tuple[str, ...]:
    """Of `GOALS`, those that tell anything: measured on validation and on test items, where a branch gains on the base."""
    design = scores.design
    found = []
    for goal, name in zip(GOALS, (design.skill, design.preference), strict=False):
        measure = scores.measure(name)
        sign = 1 if measure is None or measure.higher_is_better else -1
        if all(sign * (best - zero) > 0 for zero, best in (ends(scores, name, end) for end in ("", VALIDATION))):
            found.append(goal)
    return (*found, *(GOALS[2:] if _retained(scores) else ()))


def _retained(scores: StudyScores) -> list[str]:
    """The measures of what is retained that the base was scored in, on validation and on test items."""
    base = [arm.name for arm in scores.design.arms if arm.group == "base"][:1]
    return [
        name
        for name in scores.design.retained
        if all(mean_score(scores, arm, name + end) is not None for arm in base for end in ("", VALIDATION)) and base
    ]


def front_of(scores: StudyScores, trials: Sequence[str], way: str = "", form: str = "") -> Front | None:
    """The front of some arms; None if no goal was measured, or no arm has the validation items of all seeds."""
    goals = measured_goals(scores)
    on_validation = {name: scaled(scores, name, goals, VALIDATION) for name in dict.fromkeys(trials)}
    known = {name: points for name, points in on_validation.items() if len(points) == len(scores.figures.seeds)}
    if not known or not goals:
        return None
    means = [_mean(list(points.values())) for points in known.values()]
    members = [list(known)[place] for place in pareto_front(means, [True] * len(goals))]
    on_test = {name: scaled(scores, name, goals) for name in members}
    seeds = [seed for seed in scores.figures.seeds if all(seed in points for points in on_test.values())]
    volumes = {seed: hypervolume([points[seed] for points in on_test.values()]) for seed in seeds}
    test_points = tuple(_mean(list(points.values())) for points in on_test.values() if points)
    return Front(way, form, tuple(dict.fromkeys(trials)), tuple(members), goals, _level(volumes), test_points)


def _mean(points: Sequence[Point]) -> Point:
    return tuple(sum(column) / len(points) for column in zip(*points, strict=True))


def _level(volumes: dict[int, float]) -> Level | None:
    if not volumes:
        return None
    value = sum(volumes.values()) / len(volumes)
    return Level(volumes, value, mean_of_seeds(list(volumes.values())).interval if len(volumes) > 1 else None)


def scaled(scores: StudyScores, arm: str, goals: Sequence[str], end: str = "") -> dict[int, Point]:
    """Seed → the arm's scaled goals, of the seeds that have all of them."""
    columns = [_column(scores, arm, goal, end) for goal in goals]
    seeds = [seed for seed in scores.figures.seeds if all(seed in column for column in columns)]
    return {seed: tuple(column[seed] for column in columns) for seed in seeds}


def _column(scores: StudyScores, arm: str, goal: str, end: str) -> dict[int, float]:
    if goal == GOALS[2]:
        shares = [_kept(scores, arm, name, end) for name in _retained(scores)]
        seeds = [seed for seed in scores.figures.seeds if all(seed in each for each in shares)]
        return {seed: sum(each[seed] for each in shares) / len(shares) for seed in seeds}
    name = scores.design.skill if goal == GOALS[0] else scores.design.preference
    zero, best = ends(scores, name, end)
    return {seed: (mean - zero) / (best - zero) for seed, mean in seed_means(scores, arm, name + end).items()}


def _kept(scores: StudyScores, arm: str, name: str, end: str) -> dict[int, float]:
    """Seed → the share of what the base has that an arm retains in one measure."""
    measure = scores.measure(name)
    base = next(each.name for each in scores.design.arms if each.group == "base")
    reference = mean_score(scores, base, name + end) or 0.0
    means = seed_means(scores, arm, name + end)
    if measure is not None and measure.in_nats:
        sign = 1 if measure.higher_is_better else -1
        return {seed: math.exp(sign * (mean - reference)) for seed, mean in means.items()}
    less_is_better = measure is not None and not measure.higher_is_better
    ratios = {seed: (mean, reference)[:: -1 if less_is_better else 1] for seed, mean in means.items()}
    return {seed: own / other if other else 1.0 for seed, (own, other) in ratios.items()}
