"""The tables of a comparison: its arms, and the paper's questions to them."""

from __future__ import annotations

from paft_plugin.evaluation.results import Measure
from paft_plugin.formats import threshold_label
from paft_plugin.report.choice import Choice
from paft_plugin.report.differences import comparisons, number, signed, standard_error
from paft_plugin.report.page import BLANK, Cell, Column, Row, Table, difference_cell, number_cell, unbroken
from paft_plugin.report.results import Arm, Results


def arm_table(results: Results, choice: Choice) -> Table:
    """A row for each arm: every measure with its standard error, the alignment tax, every sparsity."""
    thresholds = [key for key in results.thresholds if any(key in arm.sparsity for arm in results.arms)]
    has_tax = any(arm.alignment_tax is not None for arm in results.arms)
    columns = [
        Column("Arm", is_number=False),
        *(Column(_heading(measure)) for measure in results.measures),
        *([Column("Alignment tax")] if has_tax else []),
        *(Column(f"Sparsity at {unbroken(threshold_label(float(key)))}") for key in thresholds),
    ]
    rows = [
        Row(
            [
                Cell(arm.name),
                *(_score_cell(arm, measure) for measure in results.measures),
                *([_tax_cell(arm)] if has_tax else []),
                *(number_cell(arm.sparsity.get(key), "{:.1%}") for key in thresholds),
            ],
            is_marked=arm is choice.arm,
            tag="chosen" if arm is choice.arm else "no different" if arm.name in choice.tied else "",
        )
        for arm in results.arms
    ]
    note = "± one standard error. Sparsity is the share of a delta's entries with |δ| at or under the threshold. "
    note += "Alignment tax is the skill of sft less that of the arm." if has_tax else ""
    return Table("arms", "Every arm, as scored", columns, rows, note.strip())


def _heading(measure: Measure) -> str:
    return measure.name if measure.higher_is_better else f"{measure.name} (less is better)"


def _score_cell(arm: Arm, measure: Measure) -> Cell:
    score = arm.scores.get(measure.name)
    if score is None:
        return Cell(BLANK, "")
    error = standard_error(arm, measure.name)
    return Cell(number(score) + ("" if error is None else f" ± {number(error)}"), score)


def _tax_cell(arm: Arm) -> Cell:
    return Cell(BLANK, "") if arm.alignment_tax is None else Cell(signed(arm.alignment_tax), arm.alignment_tax)


def comparison_table(results: Results, choice: Choice) -> Table | None:
    """A row for each question of the paper that this run answers; None if it answers none."""
    asked = comparisons(results, None if choice.arm is None else choice.arm.name)
    if not asked:
        return None
    return Table(
        "comparisons",
        "What changes from one arm to another",
        [Column("Question", is_number=False), *(Column(_heading(measure)) for measure in results.measures)],
        [
            Row([Cell(one.question, detail=f"{one.before} → {one.after}"), *map(difference_cell, one.differences)])
            for one in asked
        ],
        "Differences ± their standard error, of unpaired items. Less than two standard errors counts as no difference; of many "
        "comparisons a few pass that bar by chance.",
    )
