"""Which arm to use, by a rule that is written down, and what it costs.

The rule (`RULE`, shown on the page) asks first for SFT's skills, then for the preferences, then for everything else, and never
takes a difference that may be chance for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from paft_plugin.drawing import joined
from paft_plugin.evaluation.results import ArmResult, Measure, Results
from paft_plugin.formats import number
from paft_plugin.report.differences import Difference, difference, silent_measures, told_apart

RULE = (
    "Leave out every measure that tells nothing here. Better and worse are differences on the same items with p ≤ 0.05, unless "
    "they are proven to be smaller than the measure's margin (two one-sided tests).",
    "Controls, which are there to compare with, are not chosen. Take the SFT arm with the best skill as the reference, for each "
    "skill; other forms of an SFT branch only without one; without any SFT arm, the arm with the best skill.",
    "Keep the arms that are worse in no skill than its reference.",
    "Of these, take the one with the best preference; arms that are worse in no preference are tied with it.",
    "Of the tied, drop those that are worse than another in any other measure, unless that leaves none. Other views of the "
    "same rows, and the distance from the base, are no other measures.",
    "Of what is left, name the one with the best preference, then skill, then sum of the other measures, then the sparsest; "
    "several measures are added up in units of their margins.",
)
Kind = Literal["clear", "tied", "trade", "nothing", "one measure", "none"]


@dataclass(frozen=True)
class Choice:
    """What the rule came to."""

    kind: Kind
    arm: ArmResult | None
    headline: str
    explanation: str
    ties: tuple[Difference, ...] = ()
    """Of each other arm that is neither better nor worse than the chosen one: its least certain difference in a goal."""
    costs: tuple[Difference, ...] = ()
    """What the chosen arm gains or loses: skills against SFT, preferences against the best, the rest against the base."""

    @property
    def tied(self) -> dict[str, str]:
        """Those other arms → `equivalent` or `not told apart`."""
        words = {"equivalent": "equivalent", "unclear": "not told apart"}
        return {tie.after.name: words.get(tie.verdict, tie.verdict) for tie in self.ties}


@dataclass(frozen=True)
class _Field:
    """What there is to choose from, and by what."""

    results: Results
    arms: Sequence[ArmResult]
    """Those that are scored on every goal. What was merged in memory alone lies nowhere to be used, and is often one of many
    settings, of which the luckiest would win."""
    skills: Sequence[Measure]
    preferences: Sequence[Measure]
    others: Sequence[Measure]

    @property
    def goals(self) -> list[Measure]:
        return [*self.skills, *self.preferences]

    def best(self, arms: Sequence[ArmResult], *groups: Sequence[Measure]) -> ArmResult:
        """The best by each group of measures in turn, then the sparsest; among equals the first."""

        def gains(arm: ArmResult) -> tuple[float, ...]:
            sparsity = (arm.sparsity[key] for key in sorted(arm.sparsity, key=float))
            return (*(sum(_in_margins(arm, measure) for measure in group) for group in groups), *sparsity)

        return max(arms, key=gains)

    def references(self) -> dict[str, ArmResult]:
        """Skill → the arm that has it."""
        taught = [arm for arm in self.arms if arm.arm.is_sft] or self.arms
        taught = [arm for arm in taught if not arm.arm.beside] or taught
        return {skill.name: self.best(taught, [skill]) for skill in self.skills}

    def most(self) -> ArmResult:
        """The arm with the best preference of all."""
        return self.best(self.arms, self.preferences, self.skills)

    def ties(self, chosen: ArmResult, others: Sequence[ArmResult]) -> tuple[Difference, ...]:
        """Each other arm's least certain difference in a goal: the one that is not equivalent, if there is any."""
        found = []
        for arm in others:
            changes = [change for goal in self.goals if (change := difference(chosen, arm, goal)) is not None]
            order = {"unclear": 0, "equivalent": 1}
            found += sorted(changes, key=lambda change: order.get(change.verdict, 2))[:1]
        return tuple(found)


def choose(results: Results) -> Choice:
    """Apply the rule to `results`."""
    silent = silent_measures(results)

    def telling(names: Sequence[str]) -> list[Measure]:
        return [results.measure(name) for name in names if name not in silent]

    skills, preferences = telling(results.skills), telling(results.preferences)
    goals = [*skills, *preferences]
    there = (arm for arm in results.arms if not arm.arm.in_memory and arm.arm.control is None)
    scored = [arm for arm in there if all(goal.name in arm.scores for goal in goals)]
    if not goals or not scored:
        return _none(results, silent)
    rows = {goal.held_out for goal in goals} - {None}
    others = [
        one for one in telling([one.name for one in results.others]) if one.held_out not in rows and not one.is_distance
    ]
    field = _Field(results, scored, skills, preferences, others)
    if not skills or not preferences:
        return _by_one_role(field, silent)
    references = field.references()
    kept = [arm for arm in scored if not any(_worse(references[skill.name], arm, skill) for skill in skills)]
    most = field.most()
    if not kept:
        return _trade(field, references, most)
    best = field.best(kept, preferences, skills, field.others)
    tied = [arm for arm in kept if not any(_worse(best, arm, one) for one in preferences)]
    left = [arm for arm in tied if not any(_worse(one, arm, other) for one in tied for other in field.others)] or tied
    chosen = field.best(left, preferences, skills, field.others)
    if all(_is_trade(references, chosen, most, preference) for preference in preferences):
        return _trade(field, references, most)
    return _named(field, chosen, [arm for arm in left if arm is not chosen], references, most)


def _none(results: Results, silent: Mapping[str, str]) -> Choice:
    if not results.goals:
        why = "no measure of a skill or a preference is named"
    elif all(goal in silent for goal in results.goals):
        why = "no measure of a skill or a preference tells anything"
    else:
        why = "no arm has been scored on every skill and preference"
    return Choice("none", None, "No arm can be named", f"In this run {why}: compare the arms in the table yourself.")


def _in_margins(arm: ArmResult, measure: Measure) -> float:
    """A score, with the sign turned where less is better, as a multiple of what does not matter."""
    sign = 1 if measure.higher_is_better else -1
    return sign * arm.scores.get(measure.name, -sign * float("inf")) / (measure.margin or 1.0)


def _worse(one: ArmResult, other: ArmResult, measure: Measure) -> bool:
    """Whether `other` is worse than `one` by more than chance."""
    found = difference(one, other, measure)
    return found is not None and found.verdict == "worse"


def _is_trade(references: Mapping[str, ArmResult], chosen: ArmResult, most: ArmResult, preference: Measure) -> bool:
    """Whether what keeps the skills has no more of the preference than SFT alone, although another arm has."""
    gains = [difference(reference, chosen, preference) for reference in references.values()]
    is_more = any(gained is not None and gained.verdict in ("better", "worse") for gained in gains)
    return not is_more and _worse(most, chosen, preference)


def _named(
    field: _Field, chosen: ArmResult, tied: list[ArmResult], references: Mapping[str, ArmResult], most: ArmResult
) -> Choice:
    costs, ties = _costs(field, chosen, references, most), field.ties(chosen, tied)
    skills, preferences = _names(field.skills), _names(field.preferences)
    of = {reference.name: reference for reference in references.values()}
    best = "the best SFT arm" if all(one.arm.is_sft for one in of.values()) else "the best there is"
    named = f"{joined(list(of))}{f', {best}' if len(of) == 1 else ''}"
    base = field.results.first("base")
    if base and base.name in (chosen.name, *(arm.name for arm in tied)):
        others = [arm for arm in (chosen, *tied) if arm is not base]
        ties = field.ties(base, others)
        said = (
            f"Its {skills} is not shown to be worse than that of {named}, and no arm that keeps it is shown to have more "
            f"{preferences}. {told_apart(ties)} Score more items, or train longer, before choosing."
        )
        return Choice("nothing", base, "Nothing beats the base model", said, ties)
    said = f"It has the best {preferences} of the arms that keep the {skills} of {named}."
    if not tied:
        return Choice("clear", chosen, f"Use {chosen.name}", f"{said} No other arm is its equal.", (), costs)
    said = f"{said} {told_apart(ties)}"
    if len(tied) + 1 == len(field.results.arms):
        are_equivalent = all(tie.verdict == "equivalent" for tie in ties)
        said = "These items show no difference between the arms"
        said = (
            f"{said}, so any will do." if are_equivalent else f"{said}, which is no proof of none. {told_apart(ties)}"
        )
    return Choice("tied", chosen, f"Use {chosen.name}", said, ties, costs)


def _trade(field: _Field, references: Mapping[str, ArmResult], most: ArmResult) -> Choice:
    """No arm has all: name what keeps each, and the nearest to all."""

    def greatest_loss(arm: ArmResult) -> float:
        return max(_loss(references.get(goal.name, most), arm, goal) for goal in field.goals)

    nearest = min(field.arms, key=greatest_loss)
    if len(field.goals) == 2:
        said = _both_ways(field, references, most, nearest)
    else:
        worst = max(field.goals, key=lambda goal: _loss(references.get(goal.name, most), nearest, goal))
        best = references.get(worst.name, most)
        given_up = number(abs(best.scores[worst.name] - nearest.scores[worst.name]))
        said = (
            f"No arm keeps the skills of all SFT branches ({_names(field.skills)}) and gains {_names(field.preferences)}. "
            f"{nearest.name} gives up least, counted in margins: most of all {given_up} of the {worst.name} of {best.name}."
        )
    costs = _costs(field, nearest, references, most)
    several = "both" if len(field.goals) == 2 else "all"
    return Choice("trade", nearest, f"No arm has {several}; {nearest.name} is nearest", said, (), costs)


def _both_ways(field: _Field, references: Mapping[str, ArmResult], most: ArmResult, nearest: ArmResult) -> str:
    """What keeps the one skill, what has the most of the one preference, and what is between them."""
    (skill,), (preference,) = field.skills, field.preferences
    kept = references[skill.name]
    return (
        f"No arm keeps the {skill.name} of {kept.name} ({number(kept.scores[skill.name])}) and gains {preference.name}: the "
        f"most of that has {most.name} ({_scores(most, field.goals)}). {nearest.name} gives up least of the better one of both: "
        f"{_scores(nearest, field.goals)}."
    )


def _loss(best: ArmResult, arm: ArmResult, measure: Measure) -> float:
    return _in_margins(best, measure) - _in_margins(arm, measure)


def _by_one_role(field: _Field, silent: Mapping[str, str]) -> Choice:
    """By the skills alone, or by the preferences alone."""
    best = field.best(field.arms, field.goals)
    tied = [arm for arm in field.arms if arm is not best and not any(_worse(best, arm, goal) for goal in field.goals)]
    missing, names = ("preference", field.results.preferences) if field.skills else ("skill", field.results.skills)
    why = f"{joined(list(names))} tells nothing here" if names else f"the run has no measure of the {missing}"
    ties = field.ties(best, tied)
    said = f"It has the best {_scores(best, field.goals)}; {why}. {told_apart(ties)}".rstrip()
    base = field.results.first("base")
    if base and base.name in (best.name, *(arm.name for arm in tied)):
        ties = field.ties(base, [arm for arm in (best, *tied) if arm is not base])
        said = f"No arm is shown to have more {_names(field.goals)}; {why}. {told_apart(ties)} Score more items, or train longer."
        return Choice("nothing", base, "Nothing beats the base model", said, ties)
    compared = [measure for measure in field.results.measures if measure.name not in silent]
    costs = [difference(base, best, measure) for measure in compared] if base else []
    return Choice("one measure", best, f"Use {best.name}", said, ties, tuple(filter(None, costs)))


def _costs(
    field: _Field, chosen: ArmResult, references: Mapping[str, ArmResult], most: ArmResult
) -> tuple[Difference, ...]:
    base = field.results.first("base")
    against = [(references[skill.name], skill) for skill in field.skills]
    against += [(most, preference) for preference in field.preferences]
    if base is not None:
        against += [(base, measure) for measure in field.others]
    return tuple(filter(None, (difference(before, chosen, measure) for before, measure in against)))


def _names(measures: Sequence[Measure]) -> str:
    return joined([measure.name for measure in measures])


def _scores(arm: ArmResult, measures: Sequence[Measure]) -> str:
    return joined([f"{measure.name} {number(arm.scores[measure.name])}" for measure in measures])
