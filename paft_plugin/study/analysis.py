"""What a study found: every arm with its interval, the declared contrasts, the controls, the fronts and the curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from paft_plugin.evaluation.results import VALIDATION, Measure, is_validation
from paft_plugin.evaluation.statistics import MeanChange, holm
from paft_plugin.report.differences import Verdict, verdict
from paft_plugin.study.chosen import EVERY_WAY, Taken, take
from paft_plugin.study.design import BEST, CONTROL, PRIMARY, Contrast, Group, StudyArm
from paft_plugin.study.effects import Level, change, level, paired, terms
from paft_plugin.study.fronts import Front, front_of, fronts
from paft_plugin.study.scores import StudyScores

ALONE = "alone"
"""What a branch is called on a curve, beside the ways that fuse it."""


@dataclass(frozen=True)
class StudyRow:
    """One arm, with all that was measured of it on test items."""

    name: str
    group: str
    way: str
    form: str
    is_chosen: bool
    """Whether it stands for its way and form, or its control."""
    levels: Mapping[str, Level]
    """By measure, `primary` among them."""
    on_validation: Mapping[str, Level]
    """The same on validation items, of the measures that have some."""
    sparsity: Mapping[str, float]
    """Mean over seeds."""
    l1: float | None
    l2: float | None


@dataclass(frozen=True)
class Answered:
    """What a question came to: how far arm `one` is from arm `other`."""

    contrast: Contrast
    one: str | None
    """None where nothing could be chosen."""
    other: str | None
    change: MeanChange | None
    """None where no seed has the items of both; `why` says what is missing."""
    margin: float | None
    higher_is_better: bool
    seeds: tuple[int, ...] = ()
    """Those that it is answered by."""
    adjusted: float | None = None
    """The p value after Holm's correction, of a declared contrast; None of an exploratory one."""
    why: str = ""

    @property
    def p(self) -> float | None:
        """Of no difference at all, corrected where it was declared."""
        return self.adjusted if self.adjusted is not None else None if self.change is None else self.change.p

    @property
    def verdict(self) -> Verdict:
        """Of `one`."""
        if self.change is None or self.p is None:
            return "unclear"
        gain = self.change.value if self.higher_is_better else -self.change.value
        return verdict(gain, self.change, self.p, self.margin)


@dataclass(frozen=True)
class ControlRow:
    """The delta of a control beside what it is matched to, and what fusions of it and of the penalised branch come to."""

    name: str
    arm: str | None
    """The candidate that was taken; None where none could be, or where the control has no delta of its own."""
    like: str | None
    """The branch that it is compared with alone."""
    answers: Mapping[str, Answered]
    """Way, or `alone` → the penalised less the control, in `primary` (alone: in the goal of the branch)."""


@dataclass(frozen=True)
class CurvePoint:
    """One arm on a curve."""

    name: str
    x: float
    levels: Mapping[str, Level]


@dataclass(frozen=True)
class StudyCurve:
    """How scores follow a setting."""

    setting: str
    series: Mapping[str, Sequence[CurvePoint]]
    """`alone`, or the way of combining → its points in order."""
    volumes: Mapping[float, Level]
    """Where a penalty is varied: its setting → the hypervolume of the front of all that its delta is fused to."""


@dataclass(frozen=True)
class Analysis:
    """All that a study found."""

    scores: StudyScores
    measures: tuple[Measure, ...]
    """Of test items: skill, preference, what is retained, then the others."""
    rows: tuple[StudyRow, ...]
    taken: Mapping[str, Taken]
    """What was chosen on validation items, by reference."""
    answers: tuple[Answered, ...]
    controls: tuple[ControlRow, ...]
    fronts: tuple[Front, ...]
    curves: tuple[StudyCurve, ...]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that have results."""
        return tuple(self.scores.figures.seeds)

    @property
    def best(self) -> StudyRow | None:
        """The trial that is best on validation items, of all ways and forms."""
        taken = self.taken.get(EVERY_WAY)
        return next((row for row in self.rows if taken and taken.arm and row.name == taken.arm.name), None)

    @property
    def main(self) -> list[StudyRow]:
        """The base, branches (of each form the first, not a whole curve), what was chosen or is asked about, controls' deltas."""
        first = {
            form: name for name, form in reversed([(row.name, row.form) for row in self.rows if row.group == "branch"])
        }
        shown = {
            row.name for row in self.rows if row.group == "branch" and (not row.form or first[row.form] == row.name)
        }
        chosen = {row.name for row in self.rows if row.is_chosen and (row.group != "control" or not row.way)}
        asked = {name for one in self.answers for name in (one.one, one.other)}
        return [row for row in self.rows if row.group == "base" or row.name in shown | chosen | asked]

    @property
    def main_measures(self) -> list[Measure]:
        """What the design names, and how far an arm is from the base."""
        named = self.scores.design.measures
        return [measure for measure in self.measures if measure.name in named or measure.is_distance]


def analyse(scores: StudyScores) -> Analysis:
    """Everything that follows from the scores of a study's seeds."""
    taken = {reference: take(scores, reference) for reference in _references(scores)}
    answers = _declared(scores, taken)
    return Analysis(
        scores,
        tuple(_test_measures(scores)),
        tuple(_rows(scores, {each.arm.name for each in taken.values() if each.arm and each.is_choice})),
        taken,
        answers,
        tuple(_controls(scores, taken)),
        tuple(fronts(scores)),
        tuple(_curves(scores)),
        tuple(_notes(scores, taken, answers)),
    )


def _references(scores: StudyScores) -> list[str]:
    """All that something is to be chosen for: every way and form, every control alone and fused, and the contrasts' own."""
    choices = scores.design.choices
    asked = [each for contrast in scores.design.contrasts for each in (contrast.one, contrast.other)]
    every = [EVERY_WAY] if any(each.startswith(BEST) for each in choices) else []
    return list(dict.fromkeys([*every, *choices, *asked]))


def _test_measures(scores: StudyScores) -> Iterator[Measure]:
    design = scores.design
    order = [design.skill, design.preference, *design.retained]
    on_test = [
        measure for measure in scores.figures.measures if not is_validation(measure.name, scores.figures.measures)
    ]
    yield from sorted(on_test, key=lambda one: order.index(one.name) if one.name in order else len(order))


def _rows(scores: StudyScores, chosen: set[str]) -> Iterator[StudyRow]:
    measures = [measure.name for measure in _test_measures(scores)]
    first: dict[str, StudyArm] = {}  # of an arm that is several things
    for arm in sorted(scores.design.arms, key=lambda arm: get_args(Group).index(arm.group)):
        first.setdefault(arm.name, arm)
    for arm in filter(lambda arm: first[arm.name] is arm, scores.design.arms):
        levels = {name: found for name in (PRIMARY, *measures) if (found := level(scores, arm.name, name))}
        if levels:
            figures = [arms[arm.name] for arms in scores.figures.seeds.values() if arm.name in arms]
            thresholds = sorted({key for each in figures for key in each.sparsity}, key=float)
            yield StudyRow(
                arm.name,
                arm.group,
                arm.way or "",
                arm.form or "",
                arm.name in chosen,
                levels,
                {name: found for name in levels if (found := level(scores, arm.name, name + VALIDATION))},
                {
                    key: mean
                    for key in thresholds
                    if (mean := _mean([each.sparsity.get(key) for each in figures])) is not None
                },
                _mean([each.l1 for each in figures]),
                _mean([each.l2 for each in figures]),
            )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def answer(scores: StudyScores, contrast: Contrast, one: Taken, other: Taken) -> Answered:
    """A question's answer, not corrected."""
    measure = scores.measure(contrast.measure)
    margin = contrast.margin if contrast.margin is not None else _margin(scores, contrast.measure)
    up = measure is None or measure.higher_is_better
    if one.arm is None or other.arm is None:
        return Answered(contrast, None, None, None, margin, up, why=one.why or other.why)
    pair = one.arm.name, other.arm.name
    if pair[0] == pair[1]:
        return Answered(contrast, *pair, None, margin, up, why=f"Both are {pair[0]}.")
    found, seeds = (
        change(scores, pair[1], pair[0], contrast.measure),
        paired(scores, pair[1], pair[0], contrast.measure),
    )
    how_many = "No seed has" if len(scores.items) < 2 else "Fewer than two seeds have"
    why = "" if found else f"{how_many} two items or more of {contrast.measure} of both {' and '.join(pair)}."
    if found and len(seeds) < len(scores.figures.seeds):
        why = f"By seeds {', '.join(map(str, seeds))} alone, which have the items of both."
    return Answered(contrast, *pair, found, margin, up, seeds, why=why)


def _margin(scores: StudyScores, name: str) -> float | None:
    """A measure's own; of `primary` the weighted sum of those that it is made of, if all have one."""
    parts = [(term.weight, scores.measure(term.measure)) for term in terms(scores, name)]
    margins = [abs(weight) * part.margin for weight, part in parts if part is not None and part.margin is not None]
    return sum(margins) if margins and len(margins) == len(parts) else None


def _declared(scores: StudyScores, taken: Mapping[str, Taken]) -> tuple[Answered, ...]:
    """The contrasts, with Holm's correction over all of them: one that could not be tested counts as one of p = 1."""
    found = [answer(scores, each, taken[each.one], taken[each.other]) for each in scores.design.contrasts]
    adjusted = holm([1.0 if each.change is None else each.change.p for each in found])
    return tuple(replace(each, adjusted=p if each.change else None) for each, p in zip(found, adjusted, strict=True))


def _controls(scores: StudyScores, taken: Mapping[str, Taken]) -> Iterator[ControlRow]:
    """Every control, beside the branch that it is matched to, and by every way that both it and the penalised were fused by."""
    arms, design = scores.design.arms, scores.design
    penalised = next((arm.name for arm in arms if arm.group == "branch" and arm.form == "l1"), None)
    for name in dict.fromkeys(arm.control for arm in arms if arm.group == "control" and arm.control):
        own = [arm for arm in arms if arm.group == "control" and arm.control == name]
        match = next((arm.match for arm in own if arm.match), None)
        like = match.to if match else penalised
        goal = design.preference if match and match.measure == design.preference else design.skill
        alone = taken.get(f"{CONTROL}{name}")
        pairs = [("alone", like, alone, goal)] if alone else []
        for way in dict.fromkeys(arm.way for arm in own if arm.way):
            pairs.append((way, _fused(arms, penalised, way), taken[f"{CONTROL}{name}/{way}"], PRIMARY))
        answers = {}
        for way, mine, control, measure in pairs:
            if mine is not None and control is not None and control.arm is not None:
                contrast = Contrast(name=f"{name}, {way}", one=mine, other=control.arm.name, measure=measure)
                answers[way] = answer(scores, contrast, take(scores, mine), control)
        yield ControlRow(name, alone.arm.name if alone and alone.arm else None, like if alone else None, answers)


def _fused(arms: Sequence[StudyArm], branch: str | None, way: str) -> str | None:
    """The default trial of a way that fuses that branch."""
    own = [arm for arm in arms if arm.group == "way" and arm.way == way and arm.of == branch]
    return min(own, key=lambda arm: arm.trial or 1).name if own else None


def _curves(scores: StudyScores) -> Iterator[StudyCurve]:
    measures = [PRIMARY, *(measure.name for measure in _test_measures(scores))]
    on_curves = [arm for arm in scores.design.arms if arm.curve is not None and arm.x is not None]
    for setting in dict.fromkeys(arm.curve for arm in on_curves):
        own = [arm for arm in on_curves if arm.curve == setting]
        places = [(arm.way, arm.x) for arm in own]
        are_several = len(set(places)) < len(places)  # a dense and a penalised one at the same place
        series: dict[str, list[CurvePoint]] = {}
        for arm in own:
            levels = {name: found for name in measures if (found := level(scores, arm.name, name))}
            if levels:
                name = " ".join(filter(None, (arm.way or ALONE, arm.form if are_several else None)))
                series.setdefault(name, []).append(CurvePoint(arm.name, arm.x or 0.0, levels))
        if series:
            ordered = {name: sorted(each, key=lambda point: point.x) for name, each in series.items()}
            yield StudyCurve(setting or "", ordered, _volumes(scores, ordered) if ALONE in series else {})


def _volumes(scores: StudyScores, series: Mapping[str, Sequence[CurvePoint]]) -> dict[float, Level]:
    fused: dict[float, list[str]] = {}
    for name, points in series.items():
        for point in points if name != ALONE else ():
            fused.setdefault(point.x, []).append(point.name)
    found = {x: front_of(scores, names) for x, names in fused.items()}
    return {x: front.volume for x, front in found.items() if front is not None and front.volume is not None}


def _notes(scores: StudyScores, taken: Mapping[str, Taken], answers: Sequence[Answered]) -> Iterator[str]:
    yield from scores.design.changes
    yield from scores.figures.notes
    yield from dict.fromkeys(each.why for each in taken.values() if each.why)
    yield from (f"{each.contrast.name}: {each.why}" for each in answers if each.one and each.why)
    if not terms(scores, PRIMARY):
        yield "There is no primary: a measure of it is no share, and what the best branch gains on validation items is not known."
    if len(scores.figures.seeds) == 1:
        yield "There is one seed only: intervals are over items, and say nothing of what another training would come to."
