"""The tables of a run: its arms, and the paper's questions to them."""

from __future__ import annotations

from paft_plugin.evaluation.results import RESULTS, ArmResult, Measure, Results, skill_reference, standard_error
from paft_plugin.formats import BLANK, number, share, signed, threshold_label
from paft_plugin.report.choice import Choice
from paft_plugin.report.differences import Difference, comparisons
from paft_plugin.tables import Cell, Column, Row, Table, number_cell


def arm_table(results: Results, choice: Choice | None = None) -> Table:
    """A row for each arm: every measure with its standard error, the alignment tax, every sparsity; `choice` is marked."""
    chosen, tied = (choice.arm, choice.tied) if choice else (None, ())
    thresholds = [key for key in results.thresholds if any(key in arm.sparsity for arm in results.arms)]
    has_tax = any(arm.alignment_tax is not None for arm in results.arms)
    columns = [
        Column("Arm", is_number=False),
        *(Column(_heading(measure)) for measure in results.measures),
        *([Column("Alignment tax")] if has_tax else []),
        *(Column(f"Sparsity at {threshold_label(float(key))}", is_optional=True) for key in thresholds),
    ]
    rows = [
        Row(
            [
                Cell(arm.name),
                *(_score_cell(arm, measure) for measure in results.measures),
                *([number_cell(arm.alignment_tax, signed)] if has_tax else []),
                *(number_cell(arm.sparsity.get(key), share) for key in thresholds),
            ],
            is_marked=arm is chosen,
            tag="chosen" if arm is chosen else "no different" if arm.name in tied else "",
        )
        for arm in results.arms
    ]
    note = "± one standard error. Sparsity is the share of a delta's entries with |δ| at or under the threshold."
    reference = skill_reference(results.arms, results.skill or "")
    if has_tax and reference:
        note += f" Alignment tax is the skill of {reference.name} less that of the arm."
    return Table(columns, rows, "arms", "Every arm, as scored", note, elsewhere=RESULTS)


def _heading(measure: Measure) -> str:
    """A person's word for it with a capital; lm-eval's own as it is."""
    name = measure.name if measure.name == measure.task else measure.name[:1].upper() + measure.name[1:]
    return name if measure.higher_is_better else f"{name} (less is better)"


def _score_cell(arm: ArmResult, measure: Measure) -> Cell:
    return number_cell(arm.scores.get(measure.name), number, standard_error(arm, measure.name))


def comparison_table(results: Results, choice: Choice) -> Table | None:
    """A row for each question of the paper that this run answers; None if it answers none."""
    asked = comparisons(results, choice.arm)
    if not asked:
        return None
    questions = [Cell(one.question, detail=f"{one.before.name} → {one.after.name}") for one in asked]
    return Table(
        [Column("Question", is_number=False), *(Column(_heading(measure)) for measure in results.measures)],
        [Row([cell, *map(_difference_cell, one.differences)]) for cell, one in zip(questions, asked, strict=True)],
        "comparisons",
        "What changes from one arm to another",
        "Differences ± their standard error, of unpaired items. Less than two standard errors counts as no difference; of many "
        "comparisons a few pass that bar by chance.",
    )


def _difference_cell(found: Difference | None) -> Cell:
    """A difference with its error, and its verdict in words."""
    return Cell(BLANK, "") if found is None else Cell(str(found), found.value, verdict=found.verdict)
