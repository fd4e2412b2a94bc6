"""Differences between arms, and whether they are more than chance: by the same items where they are known of both arms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

from paft_plugin.drawing import joined
from paft_plugin.evaluation.arms import Arm
from paft_plugin.evaluation.results import ArmResult, Measure, Results, change_between, paired_values
from paft_plugin.evaluation.statistics import LEAST_ITEMS, LEVEL, MeanChange, holm
from paft_plugin.formats import limits, number, signed

ALPHA = round(1 - LEVEL, 9)
BASELINES = ("sequential", "joint", "disjoint")
"""Kinds of arms that a sceptic asks for first."""
Verdict = Literal["better", "worse", "equivalent", "unclear"]


def verdict(gain: float, change: MeanChange | None, p: float, margin: float | None) -> Verdict:
    """Whether what has changed is equivalent to within its margin, or better or worse; else nobody can tell.

    `gain` is how much better; without a `change` its spread is not known, nor whether it lies within a margin.
    """
    if change is not None and margin is not None and change.is_within(margin):
        return "equivalent"
    if p <= ALPHA and gain != 0:
        return "better" if gain > 0 else "worse"
    return "unclear"


@dataclass(frozen=True)
class Difference:
    """What changes in one measure from arm `before` to arm `after`."""

    measure: Measure
    before: ArmResult
    after: ArmResult
    adjusted: float | None = None
    """The p value after Holm's correction, of a declared contrast; None of an exploratory one."""

    @property
    def value(self) -> float:
        """`after` − `before`."""
        return self.after.scores[self.measure.name] - self.before.scores[self.measure.name]

    @cached_property
    def change(self) -> MeanChange | None:
        """By the arms' items in pairs, else by both standard errors; None where neither is known."""
        return change_between(self.before, self.after, self.measure)

    @property
    def p(self) -> float:
        """Of no difference at all, corrected where it was declared; without a known spread every difference counts."""
        if self.change is None:
            return float(self.value == 0)
        return self.change.p if self.adjusted is None else self.adjusted

    @property
    def gain(self) -> float:
        """`value`, with the sign turned where less is better."""
        return self.value if self.measure.higher_is_better else -self.value

    @property
    def verdict(self) -> Verdict:
        """Of `after`."""
        return verdict(self.gain, self.change, self.p, self.measure.margin)

    @property
    def limits(self) -> str:
        """The ends of the 95 % interval."""
        return "" if self.change is None else limits(self.change.interval)

    @property
    def sight(self) -> str:
        """How small a difference these items show."""
        if self.change is None:
            return "of unknown spread"
        items = self.change.items or "these"
        return f"{items} items, which would show differences from {number(self.change.detectable)}"

    def __str__(self) -> str:
        return f"{signed(self.value)} {self.limits}".rstrip()


def difference(before: ArmResult, after: ArmResult, measure: Measure) -> Difference | None:
    """The difference in `measure`, or None if either arm lacks it."""
    are_scored = measure.name in before.scores and measure.name in after.scores
    return Difference(measure, before, after) if are_scored else None


def silent_measures(results: Results) -> dict[str, str]:
    """Measures that tell nothing in this run → why: the same for all, too few items, or at an end of their range."""
    found = {measure.name: _why_silent(results, measure) for measure in results.measures}
    return {name: why for name, why in found.items() if why}


def _why_silent(results: Results, measure: Measure) -> str:
    scored = [arm for arm in results.arms if measure.name in arm.scores]
    scores = [arm.scores[measure.name] for arm in scored]
    few = min((arm.n[measure.name] for arm in scored if measure.name in arm.n), default=LEAST_ITEMS)
    if few < LEAST_ITEMS:
        return f"it has {few} item{'s' * (few != 1)}, and fewer than {LEAST_ITEMS} show no difference, however large"
    if len(scored) < 2:
        return ""
    if len(set(scores)) == 1 and not any(_swapped(scored[0], arm, measure.name) for arm in scored[1:]):
        return f"all {len(scored)} arms come to {number(scores[0])}"
    ends = [arm.scores[measure.name] for arm in scored if arm.arm.kind in ("base", "branch")]
    if len(ends) < 2 or measure.in_nats or not all(0 <= score <= 1 for score in scores):
        return ""
    margin = measure.margin or 0.0
    where = "floor" if max(ends) <= margin else "ceiling" if min(ends) >= 1 - margin else ""
    if not where or any(_differs(scored[0], arm, measure) for arm in scored[1:]):
        return ""
    said = f"{number(min(ends))} to {number(max(ends))}" if min(ends) < max(ends) else number(ends[0])
    return f"base and branches are at its {where} ({said}), and no arm is away from it by more than chance"


def _swapped(one: ArmResult, other: ArmResult, measure: str) -> bool:
    pair = paired_values(one, other, measure)
    return pair is not None and bool((pair[0] != pair[1]).any())


def _differs(one: ArmResult, other: ArmResult, measure: Measure) -> bool:
    found = difference(one, other, measure)
    return found is not None and found.verdict in ("better", "worse")


@dataclass(frozen=True)
class Comparison:
    """One question that the run answers: what changes from arm `before` to arm `after`."""

    question: str
    before: ArmResult
    after: ArmResult
    differences: tuple[Difference | None, ...]
    """One for each measure that tells anything."""
    is_declared: bool = True
    """Whether it was asked before there were scores."""


def comparisons(results: Results, chosen: ArmResult | None) -> list[Comparison]:
    """The paper's questions, as far as the arms are there to answer them, whichever way they came out; the chosen arm's first.

    Declared are their answers in what the branches teach, as far as a measure of that tells anything: Holm's correction is over
    these. All others are exploratory.
    """
    silent = silent_measures(results)
    measures = [one for one in results.measures if one.name not in silent]
    found = [
        Comparison(question, before, after, tuple(difference(before, after, one) for one in measures), is_declared)
        for question, before, after, is_declared in _asked(results, chosen)
    ]
    declared = [
        change
        for one in found
        for change in one.differences
        if one.is_declared and change is not None and change.measure.name in results.goals
    ]
    corrected = dict(zip(map(id, declared), holm([change.p for change in declared]), strict=True))
    return [
        replace(
            one,
            differences=tuple(
                replace(change, adjusted=corrected[id(change)])
                if change is not None and id(change) in corrected
                else change
                for change in one.differences
            ),
        )
        for one in found
    ]


def _asked(results: Results, chosen: ArmResult | None) -> Iterator[tuple[str, ArmResult, ArmResult, bool]]:
    """Question, arms, and whether it was declared before there were scores."""
    baselines = [arm for arm in results.arms if arm.arm.kind in BASELINES]
    sequential = results.first("sequential")
    for baseline in baselines:
        if chosen and chosen is not baseline:
            is_declared = baseline is sequential and chosen.arm.kind == "fused" and chosen.arm.penalised
            yield f"{chosen.name} instead of {_named(baseline.arm)}", baseline, chosen, is_declared
    for arm in results.arms:
        if arm.arm.kind == "branch" and (twin := results.arm(arm.arm.twin)):
            yield f"The penalty on {twin.name}", twin, arm, True
    for arm in baselines:
        if arm.arm.kind == "sequential" and (start := next(filter(None, map(results.arm, arm.arm.branches)), None)):
            yield f"Training on top of {start.name}", start, arm, True
    whole = [arm for arm in results.arms if arm.arm.kind == "fused" and arm.arm.without is None]
    for arm in whole:
        if arm.arm.penalised:
            if sequential and arm is not chosen:
                yield f"{arm.name} instead of sequential training", sequential, arm, not arm.arm.in_memory
            if twin := results.arm(arm.arm.twin):
                yield f"The penalty, before fusing with {arm.arm.recipe}", twin, arm, True
    for arm in results.arms:
        is_rest = partial(_is_with_more, arm.arm)
        if arm.arm.without and (full := next(filter(is_rest, whole), None)):
            yield f"{arm.arm.without} in the fusion by {arm.arm.recipe}", arm, full, True


def _named(baseline: Arm) -> str:
    names = {"sequential": "sequential training", "joint": "joint training", "disjoint": "disjoint modules"}
    return names[baseline.kind] if baseline.name in (baseline.kind, "sequential") else baseline.name


def _is_with_more(left: Arm, whole: ArmResult) -> bool:
    """Whether an arm fuses the same branches in the same way, and the one that `left` lacks."""
    return whole.arm.recipe == left.recipe and set(left.branches) < set(whole.arm.branches)


def told_apart(changes: Sequence[Difference]) -> str:
    """What is said of arms that are neither better nor worse than another one; `changes` has the least certain of each."""
    equivalent = [change.after.name for change in changes if change.verdict == "equivalent"]
    unclear = [change for change in changes if change.verdict == "unclear"]
    said = [f"Equivalent to it: {joined(equivalent)}."] if equivalent else []
    if unclear:
        names = joined([change.after.name for change in unclear])
        worst = max(unclear, key=lambda change: change.change.detectable if change.change else math.inf)
        said.append(f"It cannot be told apart from {names} in {worst.measure.name} with {worst.sight}.")
    return " ".join(said)
