"""Differences between arms, and whether they are more than chance: twice the standard error is the bar."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from paft_plugin.evaluation.results import ArmResult, Measure, Results, standard_error
from paft_plugin.formats import number, signed

BAR = 2.0
"""Standard errors that a difference must exceed to count."""
Verdict = Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Difference:
    """What changes in one measure from arm `before` to arm `after`."""

    measure: Measure
    before: ArmResult
    after: ArmResult

    @property
    def value(self) -> float:
        """`after` − `before`."""
        return self.after.scores[self.measure.name] - self.before.scores[self.measure.name]

    @property
    def error(self) -> float | None:
        """Standard error of `value`, of unpaired samples; None if it isn't known of both arms."""
        errors = [standard_error(arm, self.measure.name) for arm in (self.before, self.after)]
        known = [error for error in errors if error is not None]
        return math.hypot(*known) if len(known) == len(errors) else None

    @property
    def gain(self) -> float:
        """`value`, with the sign turned where less is better."""
        return self.value if self.measure.higher_is_better else -self.value

    @property
    def verdict(self) -> Verdict:
        """Whether `after` is better or worse by more than the bar; without a known error every difference counts."""
        if abs(self.value) <= BAR * (self.error or 0.0) or self.value == 0:
            return "same"
        return "better" if self.gain > 0 else "worse"

    def __str__(self) -> str:
        return signed(self.value) + ("" if self.error is None else f" ± {number(self.error)}")


def difference(before: ArmResult, after: ArmResult, measure: Measure) -> Difference | None:
    """The difference in `measure`, or None if either arm lacks it."""
    are_scored = measure.name in before.scores and measure.name in after.scores
    return Difference(measure, before, after) if are_scored else None


@dataclass(frozen=True)
class Comparison:
    """One question that the run answers: what changes from arm `before` to arm `after`."""

    question: str
    before: ArmResult
    after: ArmResult
    differences: tuple[Difference | None, ...]
    """One for each measure."""


def comparisons(results: Results, chosen: ArmResult | None) -> list[Comparison]:
    """The paper's questions, as far as the arms are there to answer them, whichever way they came out; the chosen arm's first."""
    return [
        Comparison(question, before, after, tuple(difference(before, after, one) for one in results.measures))
        for question, before, after in _asked(results, chosen)
    ]


def _asked(results: Results, chosen: ArmResult | None) -> Iterator[tuple[str, ArmResult, ArmResult]]:
    sequential = results.first("sequential")
    if sequential and chosen and chosen is not sequential:
        yield f"{chosen.name} instead of sequential training", sequential, chosen
    for arm in results.arms:
        if arm.arm.kind == "branch" and (twin := results.arm(arm.arm.twin)):
            yield "The penalty on the SFT branch", twin, arm
    if sequential and (start := next(filter(None, map(results.arm, sequential.arm.branches)), None)):
        yield "Preference training on top of SFT", start, sequential
    for arm in results.arms:
        if arm.arm.kind == "fused" and arm.arm.penalised:
            if sequential and arm is not chosen:
                yield f"{arm.name} instead of sequential training", sequential, arm
            if twin := results.arm(arm.arm.twin):
                yield f"The penalty, before fusing with {arm.arm.recipe}", twin, arm
