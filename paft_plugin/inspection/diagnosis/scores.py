"""What the scores in a run's folder say against an outcome: how much of what a branch was trained for another arm lacks.

Arms that answered the same items are compared item by item, others by their standard errors.
"""

from __future__ import annotations

import math
from dataclasses import replace

from paft_plugin.evaluation.results import RESULTS, ArmResult, Measure, change_between
from paft_plugin.evaluation.statistics import MeanChange, unpaired_change
from paft_plugin.inspection.diagnosis.facts import Facts
from paft_plugin.inspection.diagnosis.verdict import SURE, Check, Confidence, Evidence

HARM = 0.05  # share of items that a loss begins with
PART = 0.5  # of what was learnt: a loss in nats begins there, and a measure tells something that would show as much


def lost(facts: Facts, branch: str, owner: str, heir: str, said: str = "") -> Evidence | None:
    """How much less `heir` has of what `owner` learnt, in the goal of `branch`; None where one of the two was not scored.

    It speaks for a failure from 5 points on (of a measure in nats: from half of what `owner` gained over the base), and only
    where the 95 % interval of the difference excludes zero. It is for scale only where no difference that the items could show
    is less than half of that gain, or where nothing says how large a loss in nats is.
    """
    measure = facts.goal(branch)
    before, after = (facts.scored(arm, measure) for arm in (owner, heir)) if measure is not None else (None, None)
    if measure is None or before is None or after is None:
        return None
    change, better = _change(before, after, measure), 1 if measure.higher_is_better else -1
    what = f"{measure.name} that {owner} has and {heir}{said} has not ({change.items} items, {change.method})"
    loss = Evidence(what, -better * change.value, RESULTS, above=True)
    half = change.interval[1] - change.value if better == 1 else change.value - change.interval[0]
    gain = _gain(facts, before, measure)
    least = HARM if not measure.in_nats and _is_share(facts, measure) else None if gain is None else PART * gain
    if least is None or not math.isfinite(half):
        return loss
    threshold = max(least, half)
    if gain is not None and threshold > PART * gain:
        return loss
    return replace(loss, threshold=threshold, slack=threshold / 2)


def tolerance(facts: Facts, branch: str, arm: str) -> float | None:
    """How far an arm may fall in the goal of `branch` within its own 95 % interval; None where nothing is known of that."""
    measure = facts.goal(branch)
    found = facts.scored(arm, measure) if measure is not None else None
    if measure is None or found is None or measure.name not in found.intervals:
        return None
    (low, high), score = found.intervals[measure.name], found.scores[measure.name]
    return score - low if measure.higher_is_better else high - score


def outcomes(facts: Facts, branches: tuple[str, ...], twin: str | None) -> list[Evidence]:
    """What scores say of one branch against its dense twin, or of two against the best arm that fuses them."""
    if len(branches) == 1:
        found = [lost(facts, branches[0], twin, branches[0])] if twin is not None else []
    else:
        found = [fused_loss(facts, *pair) for pair in (branches, branches[::-1])]
    return [each for each in found if each is not None]


def fused_loss(facts: Facts, branch: str, other: str) -> Evidence | None:
    """What the best arm that fuses two branches lost of what `branch` was trained for; None without scores."""
    measure = facts.goal(branch)
    arms = [facts.scored(arm, measure) for arm in facts.arms_of(branch, other)] if measure is not None else []
    scores = {arm.name: arm.scores[measure.name] for arm in arms if arm is not None and measure is not None}
    if measure is None or not scores:
        return None
    best = max(scores, key=lambda arm: scores[arm] if measure.higher_is_better else -scores[arm])
    return lost(facts, branch, branch, best, ", the best arm of the two,")


def tempered(check: Check, scores: list[Evidence]) -> Check:
    """A check whose confidence is not high while a score contradicts it: a failure that costs nothing, or a loss unseen."""
    telling = [item for item in scores if item.speaks_for is not None]
    harmed = [item for item in telling if item.speaks_for]
    against = harmed if check.state == "clear" else telling if check.state == "found" and not harmed else []
    known = {item.what for item in check.evidence}
    unseen = [item for item in against if item.what not in known]
    named = unseen or (against if check.confidence == "high" else [])
    if not named:
        return check
    reason = f"{check.confidence_reason} A score contradicts it: {'; '.join(item.what for item in named)}."
    level: Confidence = "medium" if check.confidence == "high" else check.confidence
    evidence = (*check.evidence, *unseen)
    return replace(check, evidence=evidence, confidence=level, confidence_reason=reason.removeprefix(SURE).strip())


def _change(before: ArmResult, after: ArmResult, measure: Measure) -> MeanChange:
    """Where nothing is known of a spread, every difference counts."""
    difference = after.scores[measure.name] - before.scores[measure.name]
    return change_between(before, after, measure) or unpaired_change(difference, 0.0, before.n.get(measure.name, 0))


def _gain(facts: Facts, arm: ArmResult, measure: Measure) -> float | None:
    """What an arm gained over the base, in the measure's good direction; None where the base was not scored."""
    base = facts.results.first("base") if facts.results is not None else None
    if base is None or measure.name not in base.scores:
        return None
    return (arm.scores[measure.name] - base.scores[measure.name]) * (1 if measure.higher_is_better else -1)


def _is_share(facts: Facts, measure: Measure) -> bool:
    """Whether a measure is a share of right items, as far as its direction and its values tell."""
    arms = facts.results.arms if facts.results is not None else ()
    return measure.higher_is_better and all(0 <= arm.scores.get(measure.name, 0) <= 1 for arm in arms)
