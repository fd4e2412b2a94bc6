"""Differences between arms, and whether they are more than chance: twice the standard error is the bar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from paft_plugin.evaluation.results import Measure
from paft_plugin.report.results import Arm, Results

BAR = 2.0
"""Standard errors that a difference must exceed to count."""
Verdict = Literal["better", "worse", "same"]
MINUS = "−"


@dataclass(frozen=True)
class Difference:
    """`after` − `before` in one measure."""

    measure: Measure
    before: str
    after: str
    value: float
    error: float | None
    """Standard error of `value`, of unpaired samples; None if it isn't known of both arms."""

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


def standard_error(arm: Arm, measure: str) -> float | None:
    """The standard error of one score, or None if nothing is known of it.

    A share of exactly 0 or 1 is reported with an error of 0, as if it were certain. With n items counted that error, or a
    missing one, is replaced by that of (k + 1) / (n + 2), the rule of succession.
    """
    score, reported, items = arm.scores.get(measure), arm.stderr.get(measure), arm.items.get(measure, 0)
    if score is None:
        return None
    if not reported and items > 0 and 0 <= score <= 1:
        share = (score * items + 1) / (items + 2)
        return math.sqrt(share * (1 - share) / (items + 2))
    return reported


def difference(before: Arm, after: Arm, measure: Measure) -> Difference | None:
    """The difference in `measure`, or None if either arm lacks it."""
    one, other = before.scores.get(measure.name), after.scores.get(measure.name)
    if one is None or other is None:
        return None
    errors = [standard_error(arm, measure.name) for arm in (before, after)]
    known = [error for error in errors if error is not None]
    return Difference(
        measure, before.name, after.name, other - one, math.hypot(*known) if len(known) == len(errors) else None
    )


def number(value: float) -> str:
    """Three decimals, or four digits from 10 on; never a negative zero."""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float) -> str:
    """`number` with its sign."""
    text = number(value)
    return text if text.startswith(MINUS) else f"+{text}"


@dataclass(frozen=True)
class Comparison:
    """One question that the run answers: what changes from arm `before` to arm `after`."""

    question: str
    before: str
    after: str
    differences: tuple[Difference | None, ...]
    """One for each measure."""


def comparisons(results: Results, chosen: str | None) -> list[Comparison]:
    """The paper's comparisons, as far as the arms are there, whichever way they came out."""
    fused = [arm.name.removeprefix("paft-") for arm in results.arms if arm.name.startswith("paft-")]
    asked = [
        ("The penalty on the SFT branch", "sft", "sft-l1"),
        ("Preference training on top of SFT", "sft", "sequential"),
        *((f"The penalty, before fusing with {recipe}", f"parallel-{recipe}", f"paft-{recipe}") for recipe in fused),
    ]
    if chosen not in (None, "sequential"):
        asked.insert(0, (f"{chosen} instead of sequential training", "sequential", str(chosen)))
    found = []
    for question, one, other in asked:
        before, after = results.arm(one), results.arm(other)
        if before and after:
            changes = tuple(difference(before, after, measure) for measure in results.measures)
            found.append(Comparison(question, one, other, changes))
    return found
