"""`alpha.json`: what a run scored on the way from its SFT branch to its preference branch, and which point it took.

θ(α) = θ_pre + (1−α)·δ_sft + α·δ_pref = (1−α)·θ_sft + α·θ_pref. All scores in here are of validation items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.evaluation.results import Measure
from paft_plugin.files import JsonFile

if TYPE_CHECKING:
    from paft_plugin.evaluation.statistics import Interval

CURVES = Path("alpha")
"""Below the folder of a run: a folder for each arm, with its curve and its recipe."""
ALPHA_FILE = "alpha.json"
RULE = (
    "Of each goal, a point keeps the share (score − base) / (branch − base) of what its branch gains; that point is taken "
    "whose smallest share is largest, among equals the one with the largest sum."
)


class AlphaPoint(BaseModel):
    """One point on the way, by the measure's name."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    alpha: float
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """95 %, of means over items."""
    calibration: dict[str, float] = Field(default_factory=dict)
    """Expected calibration error, of tasks of multiple choice."""


class AlphaCurve(JsonFile):
    """The whole way, of one arm."""

    SCHEMA: ClassVar[int] = 1

    arm: str
    measures: tuple[Measure, ...]
    goals: dict[str, float]
    """Measure by which the point was chosen → where its branch lies: 0 (SFT) or 1 (preference)."""
    base: dict[str, float]
    """What the base scored."""
    points: tuple[AlphaPoint, ...]
    chosen: float
    items: dict[str, int]
    """Measure → validation items."""
    notes: tuple[str, ...] = ()

    @property
    def point(self) -> AlphaPoint:
        """The one that was taken."""
        return next(point for point in self.points if point.alpha == self.chosen)


def grid(points: int) -> list[float]:
    """So many values of α, equally far apart, both ends among them."""
    return [place / (points - 1) for place in range(points)]


def usable_goals(
    points: Sequence[AlphaPoint], base: Mapping[str, float], ends: Mapping[str, float], measures: Mapping[str, Measure]
) -> tuple[dict[str, float], list[str]]:
    """The goals that a point can be chosen by, and a line on each that cannot be: its own branch does not gain on it."""
    at = {point.alpha: point.scores for point in points}
    goals, notes = {}, []
    for name, end in ends.items():
        gains = {
            each: (at[end].get(each, 0.0) - base.get(each, 0.0)) * (1 if measures[each].higher_is_better else -1)
            for each in (name, *_finer(measures[name], measures.values()))
        }
        if taken := [each for each, gain in gains.items() if gain > 0]:
            goals[taken[0]] = end
        else:
            branch = "preference" if end else "SFT"
            notes.append(f"{name}: the {branch} branch gains nothing on validation items, so no point is chosen by it.")
    return goals, notes


def _finer(measure: Measure, measures: Iterable[Measure]) -> list[str]:
    """What stands in for a measure of right answers to held-out rows that none gains: how likely the answers are."""
    return [one.name for one in measures if (one.task, one.metric, measure.metric) == (measure.task, "nll", "match")]


def choose_point(points: Sequence[AlphaPoint], base: Mapping[str, float], goals: Mapping[str, float]) -> float:
    """The α that `RULE` takes; without goals the one in the middle."""
    at = {point.alpha: point.scores for point in points}

    def merit(point: AlphaPoint) -> tuple[float, float, float]:
        shares = [
            (point.scores[name] - base[name]) / (at[end][name] - base[name]) if name in point.scores else 0.0
            for name, end in goals.items()
        ]
        return min(shares, default=0.0), sum(shares), -abs(point.alpha - 0.5)

    return max(points, key=merit).alpha


def mean_intervals(values: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """95 % intervals of means, by the measure's name."""
    import numpy as np

    from paft_plugin.evaluation.statistics import mean_interval

    return {name: mean_interval(np.array(each, dtype=np.float64)) for name, each in values.items() if len(each) > 1}
