"""Which arm to use, by a rule that is written down, and what it costs.

The rule (`RULE`, shown on the page) asks first for SFT's skill, then for the preference, then for everything else, and never
takes a difference within two standard errors for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from paft_plugin.drawing import joined
from paft_plugin.evaluation.results import ArmResult, Measure, Results
from paft_plugin.formats import number
from paft_plugin.report.differences import Difference, difference

RULE = (
    "Take the SFT arm with the best skill as the reference; without an SFT arm, the arm with the best skill.",
    "Keep the arms whose skill is not below the reference's by more than 2 standard errors of the difference.",
    "Of these, take the one with the best preference; arms within 2 standard errors of it are tied with it.",
    "Of the tied, drop those that are worse than another by more than 2 standard errors in any other measure, unless that "
    "leaves none.",
    "Of what is left, name the one with the best preference, then skill, then sum of the other measures, then the sparsest.",
)
Kind = Literal["clear", "tied", "trade", "nothing", "one measure", "none"]


@dataclass(frozen=True)
class Choice:
    """What the rule came to."""

    kind: Kind
    arm: ArmResult | None
    headline: str
    explanation: str
    tied: tuple[str, ...] = ()
    """Other arms that cannot be told from the chosen one."""
    costs: tuple[Difference, ...] = ()
    """What the chosen arm gains or loses: skill against the SFT arm, preference against the best, the rest against the base."""


def choose(results: Results) -> Choice:
    """Apply the rule to `results`."""
    goals = [results.measure(name) for name in (results.skill, results.preference) if name is not None]
    scored = [arm for arm in results.arms if all(goal.name in arm.scores for goal in goals)]
    if not goals or not scored:
        why = "no measure of the skill or the preference is named" if not goals else "no arm has been scored on both"
        said = f"In this run {why}: compare the arms in the table yourself."
        return Choice("none", None, "No arm can be named", said)
    if len(goals) == 1:
        return _by_one(results, scored, goals[0])
    skill, preference = goals
    reference = _best([arm for arm in scored if arm.arm.is_sft] or scored, [skill])
    kept = [arm for arm in scored if not _worse(reference, arm, skill)]
    best = _best(kept, [preference, skill, *results.others])
    tied = [arm for arm in kept if not _worse(best, arm, preference)]
    left = [arm for arm in tied if not any(_worse(one, arm, other) for one in tied for other in results.others)] or tied
    chosen = _best(left, [preference, skill, *results.others])
    most = _best(scored, [preference, skill])
    if _is_trade(reference, chosen, most, preference):
        return _trade(results, scored, reference, most)
    return _named(results, chosen, [arm.name for arm in left if arm is not chosen], reference, most)


def _best(arms: Sequence[ArmResult], measures: Sequence[Measure]) -> ArmResult:
    """The best in the first two measures in turn, then in the sum of the rest, then the sparsest; among equals the first."""

    def gains(arm: ArmResult) -> tuple[float, ...]:
        each = [arm.scores.get(m.name, float("-inf")) * (1 if m.higher_is_better else -1) for m in measures]
        return (*each[:2], sum(each[2:]), *(arm.sparsity[key] for key in sorted(arm.sparsity, key=float)))

    return max(arms, key=gains)


def _worse(one: ArmResult, other: ArmResult, measure: Measure) -> bool:
    """Whether `other` is worse than `one` by more than the bar."""
    found = difference(one, other, measure)
    return found is not None and found.verdict == "worse"


def _is_trade(reference: ArmResult, chosen: ArmResult, most: ArmResult, preference: Measure) -> bool:
    """Whether what keeps the skill has no more of the preference than SFT alone, although another arm has."""
    gained = difference(reference, chosen, preference)
    return (gained is None or gained.verdict == "same") and _worse(most, chosen, preference)


def _named(results: Results, chosen: ArmResult, tied: list[str], reference: ArmResult, most: ArmResult) -> Choice:
    costs = _costs(results, chosen, reference, most)
    base = results.first("base")
    named = f"{reference.name}, the best SFT arm" if reference.arm.is_sft else f"{reference.name}, the best there is"
    if base and base.name in (chosen.name, *tied):
        said = (
            f"Its {results.skill} is no worse than that of {named}, and no arm that keeps it shows more "
            f"{results.preference}, both to within 2 standard errors. Score more items, or train longer, before choosing."
        )
        others = tuple(name for name in (chosen.name, *tied) if name != base.name)
        return Choice("nothing", base, "Nothing beats the base model", said, others)
    said = f"It has the best {results.preference} of the arms that keep the {results.skill} of {named}."
    if not tied:
        return Choice("clear", chosen, f"Use {chosen.name}", f"{said} No other arm is its equal.", (), costs)
    said += f" These items show no difference from {joined(tied)}."
    if len(tied) + 1 == len(results.arms):
        said = "These items show no difference between the arms, so any will do."
    return Choice("tied", chosen, f"Use {chosen.name}", said, tuple(tied), costs)


def _trade(results: Results, scored: Sequence[ArmResult], reference: ArmResult, most: ArmResult) -> Choice:
    """No arm has both: name what keeps each, and the nearest to both."""
    skill, preference = results.measure(str(results.skill)), results.measure(str(results.preference))

    def greatest_loss(arm: ArmResult) -> float:
        losses = (difference(reference, arm, skill), difference(most, arm, preference))
        return max(-loss.gain for loss in losses if loss is not None)

    nearest = min(scored, key=greatest_loss)
    said = (
        f"No arm keeps the {skill.name} of {reference.name} ({_score(reference, skill)}) and gains {preference.name}: the "
        f"most of that has {most.name} ({_score(most, preference)}), at a {skill.name} of {_score(most, skill)}. "
        f"{nearest.name} gives up least of the better one of both: {_score(nearest, skill)} {skill.name}, "
        f"{_score(nearest, preference)} {preference.name}."
    )
    costs = _costs(results, nearest, reference, most)
    return Choice("trade", nearest, f"No arm has both; {nearest.name} is nearest", said, (), costs)


def _by_one(results: Results, scored: Sequence[ArmResult], goal: Measure) -> Choice:
    best = _best(scored, [goal])
    tied = tuple(arm.name for arm in scored if arm is not best and not _worse(best, arm, goal))
    said = f"It has the best {goal.name}, {_score(best, goal)}; the run has no measure of "
    said += "the preference." if results.preference is None else "the skill."
    if tied:
        said += f" These items show no difference from {joined(tied)}."
    base = results.first("base")
    costs = [difference(base, best, measure) for measure in results.measures] if base and base is not best else []
    return Choice("one measure", best, f"Use {best.name}", said, tied, tuple(filter(None, costs)))


def _costs(results: Results, chosen: ArmResult, reference: ArmResult, most: ArmResult) -> tuple[Difference, ...]:
    base = results.first("base")
    against = [(reference, results.measure(str(results.skill))), (most, results.measure(str(results.preference)))]
    if base is not None:
        against += [(base, measure) for measure in results.others]
    return tuple(filter(None, (difference(before, chosen, measure) for before, measure in against)))


def _score(arm: ArmResult, measure: Measure) -> str:
    return number(arm.scores[measure.name])
