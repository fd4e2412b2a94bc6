"""What is chosen on validation items: of each way its best trial, of each control the candidate that matches best.

Nothing in here reads a score of a test item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paft_plugin.evaluation.results import VALIDATION
from paft_plugin.study.design import BEST, CONTROL, PRIMARY, StudyArm
from paft_plugin.study.effects import mean_score
from paft_plugin.study.scores import StudyScores

RULE = (
    "Of a way's trials the one is taken whose primary is greatest, as a mean over all seeds, on validation items; among "
    "equals the first, which is the default. Of a control's candidates the one is taken whose measure is nearest to that of "
    "the arm that it is matched to, on validation items as well. All are judged on test items; what luck a chosen trial had "
    "in training is part of both."
)


EVERY_WAY = f"{BEST}*/*"
"""The reference of the trial that is best of all ways and forms."""


@dataclass(frozen=True)
class Taken:
    """The arm that a reference of a design came to."""

    reference: str
    arm: StudyArm | None
    """None where nothing can be chosen, and `why` says so."""
    candidates: Mapping[str, float] = field(default_factory=dict)
    """Arm → what it was chosen by: `primary`, or its distance from what is matched; of one arm alone nothing."""
    why: str = ""

    @property
    def is_choice(self) -> bool:
        """Whether it stands for its way and form, or its control, rather than for itself."""
        return self.reference.startswith((BEST, CONTROL))


def take(scores: StudyScores, reference: str) -> Taken:
    """What a name, `best:WAY/FORM` or `control:NAME[/WAY]` stands for, chosen on validation items."""
    arms = scores.design.named(reference)
    if not arms:
        return Taken(reference, None, why=f"{reference} is no arm of the study.")
    if reference.startswith(BEST):
        return _by_merit(
            reference, arms, {arm.name: mean_score(scores, arm.name, PRIMARY + VALIDATION) for arm in arms}
        )
    if reference.startswith(CONTROL):
        return _control(scores, reference, arms)
    return Taken(reference, arms[0])


def _by_merit(reference: str, arms: list[StudyArm], merits: Mapping[str, float | None]) -> Taken:
    known = {name: merit for name, merit in merits.items() if merit is not None}
    if len(arms) == 1 or not known:
        why = "" if len(arms) == 1 else f"{reference}: no trial was scored on validation items with every seed."
        return Taken(reference, arms[0] if len(arms) == 1 else None, known, why)
    first = max(known, key=known.__getitem__)
    return Taken(reference, next(arm for arm in arms if arm.name == first), known)


def _is_fusion(arm: StudyArm, delta: StudyArm) -> bool:
    """Whether a control's arm fuses that candidate; of a control of the preference branch both are of the same skill's delta."""
    return arm.of == delta.name or (arm.of == delta.of and arm.settings == delta.settings)


def _control(scores: StudyScores, reference: str, arms: list[StudyArm]) -> Taken:
    """A control's delta, or the fusion of the delta that is taken."""
    name, _, way = reference.removeprefix(CONTROL).partition("/")
    if way and len(arms) > 1:
        delta = take(scores, f"{CONTROL}{name}")
        if delta.arm is None:
            return Taken(reference, None, why=delta.why)
        if own := [arm for arm in arms if _is_fusion(arm, delta.arm)]:
            return Taken(reference, own[0], delta.candidates)
    merits = {}
    for arm in arms:
        target = None if arm.match is None else mean_score(scores, arm.match.to, arm.match.measure + VALIDATION)
        own_score = None if arm.match is None else mean_score(scores, arm.name, arm.match.measure + VALIDATION)
        merits[arm.name] = None if target is None or own_score is None else -abs(own_score - target)
    return _by_merit(reference, arms, merits)
