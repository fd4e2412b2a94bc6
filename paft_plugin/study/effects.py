"""What an arm comes to over all seeds, and how two arms differ: paired by seed and item, judged with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paft_plugin.evaluation.results import VALIDATION, Measure
from paft_plugin.evaluation.statistics import (
    Interval,
    MeanChange,
    SeedMean,
    Values,
    change_of_mean,
    change_of_share,
    is_right_or_wrong,
    mean_of_seeds,
    share_interval,
    weighted,
)  # fmt: skip
from paft_plugin.study.design import PRIMARY
from paft_plugin.study.scores import StudyScores


@dataclass(frozen=True)
class Level:
    """One arm in one measure."""

    seeds: Mapping[int, float]
    """Each seed's mean over items."""
    value: float
    """Their mean."""
    interval: Interval | None = None
    """95 %, over seeds and items; None of one seed whose items are not kept."""

    @property
    def reach(self) -> float | None:
        """From the mean to the farther end of its interval."""
        return None if self.interval is None else max(abs(end - self.value) for end in self.interval)


@dataclass(frozen=True)
class Term:
    """A measure's part in a weighted sum of measures: weight · (score − zero)."""

    measure: str
    weight: float = 1.0
    zero: float = 0.0


def terms(scores: StudyScores, measure: str) -> list[Term]:
    """What a measure is made of: itself, or of `primary` the mean of several.

    A measure in nats, or one of which less is better, comes into that as the share of what the best branch gains on the base, on
    validation items; where that is not known, or none gains, there is no `primary`, and nothing is returned.
    """
    if measure.removesuffix(VALIDATION) != PRIMARY:
        return [Term(measure)]
    names = scores.design.primary or (scores.design.skill, scores.design.preference)
    end = VALIDATION if measure.endswith(VALIDATION) else ""
    found = [term for name in names if (term := _term(scores, name, len(names))) is not None]
    return [replace(term, measure=term.measure + end) for term in found] if len(found) == len(names) else []


def _term(scores: StudyScores, name: str, count: int) -> Term | None:
    measure = scores.measure(name)
    if measure is None or (measure.higher_is_better and not measure.in_nats):
        return Term(name, 1 / count)
    zero, best = ends(scores, name, VALIDATION)
    gained = best > zero if measure.higher_is_better else best < zero
    return Term(name, 1 / (count * (best - zero)), zero) if gained else None


def ends(scores: StudyScores, name: str, end: str = "") -> tuple[float, float]:
    """What the base and the best branch come to in a measure, or in its validation items'; both 0 where that is not known."""
    measure = scores.measure(name)
    sign = 1 if measure is None or measure.higher_is_better else -1
    base = [mean for arm in _names(scores, "base") if (mean := mean_score(scores, arm, name + end)) is not None]
    branches = [mean for arm in _names(scores, "branch") if (mean := mean_score(scores, arm, name + end)) is not None]
    return (base[0], sign * max(sign * mean for mean in branches)) if base and branches else (0.0, 0.0)


def _names(scores: StudyScores, group: str) -> list[str]:
    return [arm.name for arm in scores.design.arms if arm.group == group]


def seed_means(scores: StudyScores, arm: str, measure: str) -> dict[int, float]:
    """Seed → what the arm's items of a measure come to, or of `primary` the weighted sum; of the seeds that have all of it."""
    found: dict[int, float] = {}
    parts = terms(scores, measure)
    for seed, arms in scores.figures.seeds.items() if parts else ():
        values = [_seed_mean(scores, seed, arm, part.measure) for part in parts] if arm in arms else [None]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found[seed] = sum(part.weight * (value - part.zero) for part, value in zip(parts, known, strict=True))
    return found


def _seed_mean(scores: StudyScores, seed: int, arm: str, measure: str) -> float | None:
    kept = scores.items[seed].get(measure)
    if kept is not None and arm in kept.arms:
        return float(kept.arms[arm].mean())
    return scores.figures.seeds[seed][arm].scores.get(measure)


def mean_score(scores: StudyScores, arm: str, measure: str) -> float | None:
    """The mean over seeds; None if any seed lacks it, so that nothing is chosen for the seeds that it has."""
    found = seed_means(scores, arm, measure)
    return sum(found.values()) / len(found) if found and len(found) == len(scores.figures.seeds) else None


def level(scores: StudyScores, arm: str, measure: str) -> Level | None:
    """What an arm comes to; None if no seed scored it."""
    means = seed_means(scores, arm, measure)
    if not means:
        return None
    value = sum(means.values()) / len(means)
    parts = [(part, _values(scores, [arm], part.measure)) for part in terms(scores, measure)]
    if not all(values.keys() >= means.keys() for _, values in parts):
        known = scores.measure(measure)
        of_seeds = mean_of_seeds([np.array([mean]) for mean in means.values()], None)
        interval = of_seeds.interval if known is None or not known.is_share else _within_one(*of_seeds.interval)
        return Level(means, value, interval if len(means) > 1 else None)
    sums = [
        (part.weight, _over(scores, part.measure, {seed: values[seed] for seed in means})) for part, values in parts
    ]
    found = weighted(sums, list(means.values()))
    low, high = value - found.half(), value + found.half()
    if not all(_is_share(scores, part, values) for part, values in parts):
        return Level(means, value, (low, high))
    if len(parts) == 1 and (len(means) == 1 or low == high):
        low, high = share_interval(next(iter(parts[0][1].values())), _sources(scores, measure))
    return Level(means, value, _within_one(low, high))


def _is_share(scores: StudyScores, part: Term, values: Mapping[int, Values]) -> bool:
    """Whether a part is a share of right answers, on its own scale."""
    return part.zero == 0 and not _in_nats(scores, part.measure) and all(map(is_right_or_wrong, values.values()))


def _within_one(low: float, high: float) -> Interval:
    """What a share can be of an interval, which has no bounds of its own where few seeds differ much."""
    return max(low, 0.0), min(high, 1.0)


def change(scores: StudyScores, other: str, one: str, measure: str) -> MeanChange | None:
    """How a measure changes from `other` to `one`, by the seeds that have both; None where no seed has the items of both, or a
    single one of several: of one seed the interval is over items alone.
    """
    parts = [(part, _values(scores, [other, one], part.measure)) for part in terms(scores, measure)]
    seeds = [seed for seed in scores.items if parts and all(seed in values for _, values in parts)]
    if not seeds or len(seeds) == 1 < len(scores.items):
        return None
    if len(seeds) == 1 and len(parts) == 1:
        values = [_values(scores, [arm], measure)[seeds[0]] for arm in (other, one)]
        is_share = not _in_nats(scores, measure) and all(map(is_right_or_wrong, values))
        return (change_of_share if is_share else change_of_mean)(values[0], values[1], _sources(scores, measure))
    sums = [
        (part.weight, _over(scores, part.measure, {seed: values[seed] for seed in seeds})) for part, values in parts
    ]
    means = [sum(part.weight * float(values[seed].mean()) for part, values in parts) for seed in seeds]
    return weighted(sums, means).change


def _values(scores: StudyScores, arms: Sequence[str], measure: str) -> dict[int, Values]:
    """Seed → items of one arm, or the changes from the first of two to the second."""
    found = {}
    for seed, kept in scores.items.items():
        of = kept.get(measure)
        if of is not None and all(arm in of.arms for arm in arms):
            found[seed] = of.arms[arms[0]] if len(arms) == 1 else of.arms[arms[1]] - of.arms[arms[0]]
    return found


def _over(scores: StudyScores, measure: str, values: Mapping[int, Values]) -> SeedMean:
    are_same = len({scores.items[seed][measure].items for seed in values}) == 1
    return mean_of_seeds(list(values.values()), _sources(scores, measure) if are_same else None)


def _sources(scores: StudyScores, measure: str) -> tuple[str | None, ...]:
    return next((kept[measure].sources for kept in scores.items.values() if measure in kept), ())


def _in_nats(scores: StudyScores, measure: str) -> bool:
    found: Measure | None = scores.measure(measure)
    return found is not None and found.in_nats
