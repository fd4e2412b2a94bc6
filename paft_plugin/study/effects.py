"""What an arm comes to over all seeds, and how two arms differ: paired by seed and item, judged with both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paft_plugin.evaluation.results import VALIDATION, Measure
from paft_plugin.evaluation.statistics import (
    Interval,
    MeanChange,
    SeedPart,
    change_of_mean,
    change_of_seeds,
    change_of_share,
    is_right_or_wrong,
    mean_of_items,
    mean_of_seeds,
    share_interval,
)  # fmt: skip
from paft_plugin.formats import reach
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
        return None if self.interval is None else reach(self.value, self.interval)


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
    names = scores.design.primary
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
    parts = _parts(scores, [arm], measure)
    if not parts.keys() >= means.keys():
        if len(means) == 1:
            return Level(means, value)
        known, (low, high) = scores.measure(measure), mean_of_seeds(list(means.values())).interval
        return Level(means, value, _within_one(low, high) if known is not None and known.is_share else (low, high))
    is_share = _is_share(scores, measure, parts.values())
    if is_share and len(means) == 1 and len(of := terms(scores, measure)) == 1:
        ((seed, (part,)),) = parts.items()
        return Level(means, value, share_interval(part.values, _sources(scores, seed, of[0].measure)))
    half = mean_of_items([parts[seed] for seed in means]).half()
    low, high = value - half, value + half
    return Level(means, value, _within_one(low, high) if is_share else (low, high))


def _is_share(scores: StudyScores, measure: str, seeds: Iterable[Sequence[SeedPart]]) -> bool:
    """Whether a measure is a share of right answers, or a mean of several, on its own scale."""
    of = terms(scores, measure)
    right = all(is_right_or_wrong(part.values) for parts in seeds for part in parts)
    return right and all(term.zero == 0 and not _in_nats(scores, term.measure) for term in of)


def _within_one(low: float, high: float) -> Interval:
    """What a share can be of an interval, which has no bounds of its own where few seeds differ much."""
    return max(low, 0.0), min(high, 1.0)


def change(scores: StudyScores, other: str, one: str, measure: str) -> MeanChange | None:
    """How a measure changes from `other` to `one`, by the seeds of `paired`.

    None where there is none, or a single one of several: of one seed the interval is over items alone.
    """
    parts = _parts(scores, [other, one], measure)
    if not parts or len(parts) == 1 < len(scores.items):
        return None
    if len(parts) == 1 and len(of := terms(scores, measure)) == 1 and of[0].weight == 1:
        (seed,), name = parts, of[0].measure
        before, after = (scores.items[seed][name].arms[arm] for arm in (other, one))
        is_share = not _in_nats(scores, name) and all(map(is_right_or_wrong, (before, after)))
        return (change_of_share if is_share else change_of_mean)(before, after, _sources(scores, seed, name))
    return change_of_seeds(list(parts.values()))


def paired(scores: StudyScores, other: str, one: str, measure: str) -> tuple[int, ...]:
    """The seeds that have the items of both arms."""
    return tuple(_parts(scores, [other, one], measure))


def _parts(scores: StudyScores, arms: Sequence[str], measure: str) -> dict[int, list[SeedPart]]:
    """Seed → what a measure is made of: items of one arm, or the changes from the first of two to the second.

    Of the seeds that have all of it, with two items or more that count singly.
    """
    found, of = {}, terms(scores, measure)
    for seed, kept in scores.items.items() if of else ():
        have = [kept[term.measure].arms for term in of if term.measure in kept]
        if len(have) == len(of) and all(arm in each for arm in arms for each in have):
            values = [each[arms[-1]] - each[arms[0]] if arms[1:] else each[arms[0]] for each in have]
            units = [scores.units(seed, term.measure) for term in of]
            if all(len(np.unique(each)) > 1 for each in units):
                found[seed] = [
                    SeedPart(*each) for each in zip(values, units, (term.weight for term in of), strict=True)
                ]
    return found


def _sources(scores: StudyScores, seed: int, measure: str) -> tuple[str, ...]:
    """Of a measure's items, where clusters of them count."""
    found = scores.items[seed][measure].sources
    return () if found is None else tuple(map(str, found))


def _in_nats(scores: StudyScores, measure: str) -> bool:
    found: Measure | None = scores.measure(measure)
    return found is not None and found.in_nats
