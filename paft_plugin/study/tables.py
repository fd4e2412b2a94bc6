"""The tables of a study, each for a terminal, Markdown, LaTeX and the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from paft_plugin.drawing import joined
from paft_plugin.evaluation.results import Measure
from paft_plugin.formats import BLANK, limits, measured, number, p_said, p_value, plain_number, reach, share, signed
from paft_plugin.study.analysis import ALONE, Analysis, Answered, StudyCurve, StudyRow
from paft_plugin.study.design import CONTROL, DESIGN_FILE, PRIMARY
from paft_plugin.study.effects import Level, terms
from paft_plugin.study.fronts import measured_goals
from paft_plugin.tables import VERDICT_WORDS, Cell, Column, Row, Table, number_cell

STUDY_FILE = "study.json"
USUAL_BRANCHES = 3
"""SFT without the penalty and with it, and the preference."""
INTERVALS = "± reaches to the farther end of the 95 % interval over seeds and items."


def main_table(analysis: Analysis) -> Table:
    """The base, the branches, what was chosen of every way, and the controls' deltas."""
    note = (
        f"{_note(analysis)} Of a way or control with several candidates the one that was chosen on validation items, and what "
        "contrasts name."
    )
    return _arm_table(analysis, analysis.main, analysis.main_measures, "chosen", "What was chosen, on test items", note)


def all_table(analysis: Analysis) -> Table:
    """Every arm."""
    note = f"{_note(analysis)} Of measures that the design does not name ± is over seeds alone. The best of many flatters itself."
    caption = f"All {len(analysis.rows)} arms, on test items"
    return _arm_table(analysis, analysis.rows, analysis.measures, "arms", caption, note)


def _note(analysis: Analysis) -> str:
    seeds = len(analysis.seeds)
    over = INTERVALS if seeds > 1 else "One seed: ± reaches to the farther end of the 95 % interval over items alone."
    of = terms(analysis.scores, PRIMARY)
    scaled = [term.measure for term in of if term.zero or not math.isclose(term.weight * len(of), 1)]
    said = f"Primary is the mean of {joined([term.measure for term in of])}" if of else ""
    said += (
        f", {joined(scaled)} as the share of what the best branch gains on the base (validation items)"
        if scaled
        else ""
    )
    return f"{over} {said}{'. ' if said else ''}Sparsity and norm are the delta's, means over seeds."


def _arm_table(
    analysis: Analysis, rows: Sequence[StudyRow], measures: Sequence[Measure], name: str, caption: str, note: str
) -> Table:
    thresholds = list(dict.fromkeys(key for row in rows for key in row.sparsity))
    have_norms = any(row.l2 is not None for row in rows)
    columns = [
        Column("Arm", is_number=False),
        Column("Way", is_number=False, is_optional=True),
        Column("Form", is_number=False, is_optional=True),
        Column("Primary"),
        *(Column(_heading(one)) for one in measures),
        *(Column(f"Sparsity at {plain_number(float(key))}") for key in thresholds),
        *([Column("‖δ‖₂")] if have_norms else []),
    ]
    best = analysis.best.name if analysis.best else ""
    return Table(
        columns,
        [
            Row(
                [
                    Cell(row.name),
                    Cell(row.way or BLANK),
                    Cell(row.form or BLANK),
                    *(_with_reach(row.levels.get(each)) for each in (PRIMARY, *(one.name for one in measures))),
                    *(number_cell(row.sparsity.get(key), share) for key in thresholds),
                    *([number_cell(row.l2, measured)] if have_norms else []),
                ],
                is_marked=row.name == best,
                tag="best on validation" if row.name == best else "",
                ends_section=place + 1 < len(rows) and rows[place + 1].group != row.group,
            )
            for place, row in enumerate(rows)
        ],
        name,
        caption,
        note,
        elsewhere=STUDY_FILE,
    )


def _heading(measure: Measure) -> str:
    return measure.name if measure.higher_is_better else f"{measure.name} (less is better)"


def _with_reach(level: Level | None) -> Cell:
    """A mean and how far its interval reaches, in a terminal as well."""
    if level is None:
        return Cell(BLANK, "")
    return Cell(number(level.value) + (f" ± {number(level.reach)}" if level.reach is not None else ""), level.value)


def contrast_table(analysis: Analysis) -> Table | None:
    """What was asked before there were scores; None of a study that asks nothing."""
    if not analysis.answers:
        return None
    columns = ["Contrast", "Measure", "One − other", "95 % interval", "p (Holm)", "Verdict", "One", "Other", "p"]
    optional = {"One", "Other", "p"}
    return Table(
        [
            Column(each, each in ("One − other", "95 % interval", "p", "p (Holm)"), is_optional=each in optional)
            for each in columns
        ],
        [Row([Cell(one.contrast.name, detail=one.contrast.question), *_answer_cells(one)]) for one in analysis.answers],
        "contrasts",
        "The declared contrasts",
        f"{_declared(analysis)} p is of no difference at all, by Holm's correction over all of them. Paired within each seed, "
        "item by item. Equivalent: two one-sided tests at 5 % each, not corrected, place the difference within the margin, "
        "whatever p is. What is not told apart is neither shown nor excluded.",
        elsewhere=STUDY_FILE,
    )


def _declared(analysis: Analysis) -> str:
    if analysis.scores.design.changes:
        return f"What was scored before they were declared, and what has changed since, stands in the notes and in {DESIGN_FILE}."
    return "Declared before this study scored a test item."


def _answer_cells(one: Answered) -> Iterator[Cell]:
    yield Cell(one.contrast.measure)
    yield number_cell(None if one.change is None else one.change.value, signed)
    yield Cell(BLANK, "") if one.change is None else Cell(limits(one.change.interval), one.change.interval[0])
    yield number_cell(one.adjusted, p_value)
    sight = f"would show {number(one.change.detectable)}" if one.change and one.verdict == "unclear" else ""
    margin = f"margin {one.margin:g}" if one.margin is not None else "no margin"
    detail = "\n".join(filter(None, [sight, one.why, margin]))
    yield Cell(VERDICT_WORDS[one.verdict] if one.change else "not tested", detail=detail)
    yield Cell(_named(one.contrast.one, one.one))
    yield Cell(_named(one.contrast.other, one.other))
    yield number_cell(None if one.change is None else one.change.p, p_value)


def _named(reference: str, arm: str | None) -> str:
    return reference if reference == arm else f"{reference} = {arm or BLANK}"


def control_table(analysis: Analysis) -> Table | None:
    """Sparse, or only small: the penalised branch against each control, alone and fused; None of a study without controls."""
    if not analysis.controls:
        return None
    ways = list(dict.fromkeys(way for control in analysis.controls for way in control.answers if way != "alone"))
    rows = {row.name: row for row in analysis.rows}
    deltas = {control.name: rows[control.arm] for control in analysis.controls if control.arm in rows}
    thresholds = list(dict.fromkeys(key for row in deltas.values() for key in row.sparsity))[:1]
    return Table(
        [
            Column("Control", is_number=False),
            Column("Candidate", is_number=False, is_optional=True),
            Column("Against", is_number=False, is_optional=True),
            *(Column(f"Sparsity at {plain_number(float(key))}", is_optional=True) for key in thresholds),
            Column("‖δ‖₂", is_optional=True),
            Column("Alone"),
            *map(Column, ways),
        ],
        [
            Row(
                [
                    Cell(control.name),
                    Cell(control.arm or BLANK),
                    Cell(control.like or BLANK),
                    *_delta_cells(deltas.get(control.name), thresholds),
                    *(_difference_cell(control.answers.get(way)) for way in ("alone", *ways)),
                ]
            )
            for control in analysis.controls
        ],
        "controls",
        "The penalty against its controls: sparse, or only small?",
        "What stands under *against*, less the control: alone in the branch's goal, fused (at the default settings, of the "
        "penalised branch) in primary. ▲: the control is worse. Exploratory where no declared contrast asks it: p is not "
        "corrected, and some are chance.",
        elsewhere=STUDY_FILE,
    )  # fmt: skip


def _delta_cells(row: StudyRow | None, thresholds: Sequence[str]) -> list[Cell]:
    """Sparsity and norm."""
    found = [number_cell(None if row is None else row.sparsity.get(key), share) for key in thresholds]
    return [*found, number_cell(None if row is None else row.l2, measured)]


def _difference_cell(one: Answered | None) -> Cell:
    """A difference with how far its interval reaches, and its verdict."""
    if one is None or one.change is None:
        return Cell(BLANK, "")
    found = one.change
    mark = {"better": " ▲", "worse": " ▼", "equivalent": " ="}.get(one.verdict, " ?")
    detail = f"{VERDICT_WORDS[one.verdict]}, {p_said(found.p)}"
    said = f"{signed(found.value)} ± {number(reach(found.value, found.interval))}{mark}"
    return Cell(said, found.value, detail=detail)


def front_table(analysis: Analysis) -> Table | None:
    """What every way covers of the goals; None without trials."""
    if not analysis.fronts:
        return None
    goals = joined(analysis.fronts[0].goals)
    return Table(
        [
            Column("Way", is_number=False),
            Column("Form", is_number=False),
            Column("Trials", is_optional=True),
            Column("On the front", is_optional=True),
            Column("Hypervolume"),
            Column("Its arms", is_number=False, is_optional=True),
        ],
        [
            Row(
                [
                    Cell(front.way),
                    Cell(front.form or BLANK),
                    number_cell(len(front.trials), str),
                    number_cell(len(front.members), str),
                    _with_reach(front.volume),
                    Cell(joined(front.members)),
                ]
            )
            for front in sorted(analysis.fronts, key=lambda each: -(each.volume.value if each.volume else 0.0))
        ],
        "fronts",
        f"How much of {goals} each way covers",
        "The hypervolume on test items of the trials that no other beats on validation items, above the reference point 0: "
        "of skill and preference 0 is the base and 1 the best branch, of what is retained 1 is the base. ± is the 95 % "
        "interval over seeds. Of trials that differ by less than noise, chance decides which are on the front; noise makes "
        "all hypervolumes a bit too large.",
        elsewhere=STUDY_FILE,
    )  # fmt: skip


def choice_table(analysis: Analysis) -> Table | None:
    """What was chosen among several candidates."""
    several = [
        each
        for each in analysis.taken.values()
        if len(each.candidates) > 1 and not (each.reference.startswith(CONTROL) and "/" in each.reference)
    ]
    if not several:
        return None
    return Table(
        [
            Column("Of", is_number=False),
            Column("Taken", is_number=False),
            Column("Candidates"),
            Column("By"),
            Column("Next best"),
        ],
        [
            Row(
                [
                    Cell(each.reference),
                    Cell(each.arm.name if each.arm else BLANK),
                    number_cell(len(each.candidates), str),
                    *(number_cell(value, _merit(each.reference)) for value in sorted(each.candidates.values(), reverse=True)[:2]),
                ]
            )
            for each in several
        ],
        "choices",
        "What was chosen on validation items",
        "By: primary of a way's trial; of a control's candidate how far it is from what it is matched to. Fusions of a "
        "control are those of the candidate.",
    )  # fmt: skip


def _merit(reference: str) -> Callable[[float], str]:
    return (lambda value: number(abs(value))) if reference.startswith(CONTROL) else number


def branch_table(analysis: Analysis) -> Table | None:
    """What tells apart branches with other settings; None if there are only those of a study without further ones."""
    rows = [row for row in analysis.rows if row.group in ("base", "branch") and row.on_validation]
    measures = [one for one in analysis.main_measures if any(one.name in row.on_validation for row in rows)]
    names = PRIMARY, *(one.name for one in measures)
    if sum(row.group == "branch" for row in rows) <= USUAL_BRANCHES:
        return None
    return Table(
        [Column("Arm", is_number=False), Column("Primary"), *(Column(_heading(one)) for one in measures)],
        [Row([Cell(row.name), *(_with_reach(row.on_validation.get(name)) for name in names)]) for row in rows],
        "branches",
        "The branches, on validation items",
        "What a branch's settings are to be chosen by, so that test items can judge the choice.",
        elsewhere=STUDY_FILE,
    )  # fmt: skip


def curve_table(analysis: Analysis, curve: StudyCurve) -> Table:
    """A row for each value of a setting: the branch alone, and every fusion of it."""
    design, rows = analysis.scores.design, {row.name: row for row in analysis.rows}
    points = {(name, point.x): point for name, each in curve.series.items() for point in each}
    places = list(dict.fromkeys(sorted(x for _, x in points)))
    alone = {x: points[name, x] for name, x in points if name == ALONE}
    sparsities = {x: next(iter(rows[point.name].sparsity.items()), None) for x, point in alone.items()}
    threshold = next((found[0] for found in sparsities.values() if found), None)
    measures = [design.skill, *design.retained] if alone else []
    return Table(
        [
            Column(curve.setting),
            *([Column(f"Sparsity at {plain_number(float(threshold))}")] if threshold else []),
            *(Column(f"{name}, alone") for name in measures),
            *(Column(f"{PRIMARY}, {name}") for name in curve.series if name != ALONE),
            *([Column("Hypervolume, fused")] if curve.volumes else []),
        ],
        [
            Row(
                [
                    number_cell(x, measured),
                    *([number_cell(found[1] if (found := sparsities.get(x)) else None, share)] if threshold else []),
                    *(_with_reach(alone[x].levels.get(name) if x in alone else None) for name in measures),
                    *(
                        _with_reach(points[name, x].levels.get(PRIMARY) if (name, x) in points else None)
                        for name in curve.series
                        if name != ALONE
                    ),
                    *([_with_reach(curve.volumes.get(x))] if curve.volumes else []),
                ]
            )
            for x in places
        ],
        f"curve-{curve.setting.replace('_', '-')}-table",
        f"Scores by {curve.setting}",
        f"Hypervolume, fused: of {joined(measured_goals(analysis.scores))}, covered by all fusions of the row together."
        * bool(curve.volumes),
        elsewhere=STUDY_FILE,
    )


def cost_table(analysis: Analysis) -> Table | None:
    """What each way costs; None where nobody measured it."""
    rows = [
        {**row, "Way": f"{row['Way']} ({row['Form']})"} if row.get("Form") and "Way" in row else row
        for row in analysis.scores.figures.cost
    ]
    if not rows:
        return None
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "Form"]
    numbers = {key for key in keys if all(isinstance(row.get(key), (int, float, type(None))) for row in rows)}
    return Table(
        [Column(key, key in numbers) for key in keys],
        [
            Row(
                [
                    number_cell(row.get(key), _amount) if key in numbers else Cell(str(row.get(key, BLANK)))
                    for key in keys
                ]
            )
            for row in rows
        ],
        "cost",
        "What each way costs",
        "Minutes are those of a clock, while other stages, or other work, may have run beside."
        + " – under Tokens: its trainers do not say (ORPO’s does not)."
        * any(row.get("Tokens", 0) is None for row in rows),
    )


def _amount(value: float) -> str:
    """Tokens, minutes or bytes."""
    return f"{value:,.0f}" if abs(value) >= 1000 else measured(value)


def study_tables(analysis: Analysis) -> list[Table]:
    """All of them, the most important first."""
    others = contrast_table, control_table, front_table, cost_table, choice_table, branch_table
    curves = [curve_table(analysis, curve) for curve in analysis.curves]
    found = [main_table(analysis), *(make(analysis) for make in others), *curves, all_table(analysis)]
    return [each for each in found if each is not None]
