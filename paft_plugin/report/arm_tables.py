"""The tables of a run: its arms, and the paper's questions to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paft_plugin.drawing import joined
from paft_plugin.evaluation.results import RESULTS, ArmResult, Measure, Results, skill_reference
from paft_plugin.formats import BLANK, number, share, signed, threshold_label
from paft_plugin.report.choice import Choice
from paft_plugin.report.differences import Comparison, Difference, comparisons
from paft_plugin.tables import Cell, Column, Row, Table, number_cell


def arm_table(results: Results, choice: Choice | None = None) -> Table:
    """A row for each arm: every measure with its interval, the alignment taxes, every sparsity; `choice` is marked."""
    chosen, tied = (choice.arm, choice.tied) if choice else (None, {})
    thresholds = [key for key in results.thresholds if any(key in arm.sparsity for arm in results.arms)]
    taxed = [skill for skill in results.skills if any(skill in arm.taxes for arm in results.arms)]
    columns = [
        Column("Arm", is_number=False),
        *(Column(_heading(measure)) for measure in results.measures),
        *(Column("Alignment tax" if len(results.skills) == 1 else f"Tax on {skill}") for skill in taxed),
        *(Column(f"Sparsity at {threshold_label(float(key))}", is_optional=True) for key in thresholds),
    ]
    rows = [
        Row(
            [
                Cell(arm.name),
                *(_score_cell(arm, measure) for measure in results.measures),
                *(number_cell(arm.taxes.get(skill), signed) for skill in taxed),
                *(number_cell(arm.sparsity.get(key), share) for key in thresholds),
            ],
            is_marked=arm is chosen,
            tag="chosen" if arm is chosen else tied.get(arm.name, ""),
        )
        for arm in results.arms
    ]
    note = "± reaches to the farther end of the 95 % interval. "
    note += "Sparsity is the share of a delta's entries with |δ| at or under the threshold."
    references = [(skill, skill_reference(results.arms, results.measure(skill))) for skill in taxed]
    paid = [f"of {skill} from {reference.name}" for skill, reference in references if reference]
    if paid:
        note += f" Alignment tax is what an arm loses {joined(paid)}."
    return Table(columns, rows, "arms", "Every arm, as scored", note, elsewhere=RESULTS)


def _heading(measure: Measure) -> str:
    """A person's word for it with a capital; lm-eval's own as it is."""
    name = measure.name if measure.name == measure.task else measure.name[:1].upper() + measure.name[1:]
    return name if measure.higher_is_better else f"{name} (less is better)"


def _score_cell(arm: ArmResult, measure: Measure) -> Cell:
    return number_cell(arm.scores.get(measure.name), number, arm.reach(measure.name))


def comparison_table(results: Results, choice: Choice) -> Table | None:
    """A row for each question of the paper that this run answers; None if it answers none."""
    asked = comparisons(results, choice.arm)
    if not asked:
        return None
    questions = [Cell(one.question, detail=f"{one.before.name} → {one.after.name}{_afterwards(one)}") for one in asked]
    return Table(
        [
            Column("Question", is_number=False),
            *(Column(_heading(m) + ("" if m.name in results.goals else ", exploratory")) for m in results.measures),
        ],
        [Row([cell, *map(_difference_cell, one.differences)]) for cell, one in zip(questions, asked, strict=True)],
        "comparisons",
        "What changes from one arm to another",
        comparison_note(asked),
    )


def comparison_note(asked: Sequence[Comparison]) -> str:
    """How to read the differences: what stands beside them, and how they were judged."""
    return " ".join(["[…] is the 95 % interval.", *_how(asked)])


def _afterwards(asked: Comparison) -> str:
    return "" if asked.is_declared else "; exploratory: asked once the scores were there"


def _how(asked: Sequence[Comparison]) -> Iterator[str]:
    """How the differences were judged, in a sentence each."""
    changes = [change for one in asked for change in one.differences if change is not None]
    methods = sorted({change.change.method for change in changes if change.change is not None})
    paired = [method for method in methods if method != "unpaired"]
    if paired:
        yield f"Arms are compared item by item ({joined(paired)})."
    if "unpaired" in methods:
        which = "Where arms' items are not known" if paired else "Arms' items are not known: all"
        yield f"{which}{', ' if paired else ' '}differences are judged as if of different items, which shows less."
    declared = sum(change.adjusted is not None for change in changes)
    if declared:
        yield f"Verdicts on {declared} declared contrasts are by Holm's correction; the others are exploratory: some are chance."
    margins = {change.measure.name: change.measure.margin for change in changes if change.measure.margin is not None}
    if margins:
        said = joined([f"{measure} {margin:g}" for measure, margin in margins.items()])
        yield f"Equivalent: by two one-sided tests nearer than the margin ({said})."


def _difference_cell(found: Difference | None) -> Cell:
    """A difference with its interval and p, and its verdict in words."""
    if found is None:
        return Cell(BLANK, "")
    said = found.limits
    if found.change is not None:
        said += f"; p {number(found.p)}{'' if found.adjusted is None else ', Holm'}"
        said += f"; shows {number(found.change.detectable)}" if found.verdict == "unclear" else ""
    return Cell(signed(found.value), found.value, verdict=found.verdict, detail=said)
