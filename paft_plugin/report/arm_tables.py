"""The tables of a run: its arms, and the paper's questions to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from paft_plugin.drawing import joined
from paft_plugin.evaluation.arms import Role
from paft_plugin.evaluation.results import RESULTS, ArmResult, Measure, Results, Swaps, branch_reference
from paft_plugin.formats import BLANK, number, p_said, plain_number, share, signed
from paft_plugin.report.choice import Choice
from paft_plugin.report.differences import Comparison, Difference, comparisons, silent_measures
from paft_plugin.tables import Cell, Column, Row, Table, number_cell


def arm_table(results: Results, choice: Choice | None = None) -> Table:
    """A row for each arm: every measure with its interval, the alignment taxes, every sparsity; `choice` is marked."""
    chosen, tied = (choice.arm, choice.tied) if choice else (None, {})
    thresholds = [key for key in results.thresholds if any(key in arm.sparsity for arm in results.arms)]
    taxed = [
        skill
        for skill in results.skills[:1]
        if len(results.goals) < 3 and any(skill in arm.taxes for arm in results.arms)
    ]
    silent = silent_measures(results)
    columns = [
        Column("Arm", is_number=False),
        *(Column(f"{_heading(one)}{' (tells nothing)' if one.name in silent else ''}") for one in results.measures),
        *(Column("Alignment tax") for _ in taxed),
        *(Column(f"Sparsity at {plain_number(float(key))}", is_optional=True) for key in thresholds),
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
    reference = branch_reference(results.arms, results.measure(taxed[0])) if taxed else None
    if reference:
        note += f" Alignment tax is the {taxed[0]} of {reference.name} less that of the arm."
    note += "".join(f" {name} tells nothing here, because {why}." for name, why in silent.items())
    if results.validation:
        note += f" What they score on validation items ({joined([one.name for one in results.validation])}) is in {RESULTS}."
    return Table(columns, rows, "arms", "Every arm, as scored", note, elsewhere=RESULTS)


def _heading(measure: Measure) -> str:
    """A person's word for it with a capital; a name with parts, and lm-eval's own, as it is."""
    is_word = measure.name != measure.task and "_" not in measure.name
    name = measure.name[:1].upper() + measure.name[1:] if is_word else measure.name
    return name if measure.higher_is_better else f"{name} (less is better)"


def _score_cell(arm: ArmResult, measure: Measure) -> Cell:
    return number_cell(arm.scores.get(measure.name), number, arm.reach(measure.name))


def comparison_table(results: Results, choice: Choice) -> Table | None:
    """A row for each question of the paper that this run answers; None if it answers none."""
    asked = comparisons(results, choice.arm)
    if not asked:
        return None
    measures = [one for one in results.measures if one.name not in silent_measures(results)]
    questions = [Cell(one.question, detail=f"{one.before.name} → {one.after.name}{_afterwards(one)}") for one in asked]
    return Table(
        [
            Column("Question", is_number=False),
            *(Column(_heading(m) + ("" if m.name in results.goals else ", exploratory")) for m in measures),
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
        yield (
            f"Better and worse on {declared} declared contrasts are by Holm's correction, equivalent without it (two one-sided "
            "tests at 5 %); the others are exploratory: some are chance."
        )
    margins: dict[float, list[str]] = {}
    for measure in {change.measure.name: change.measure for change in changes}.values():
        if measure.margin is not None:
            margins.setdefault(measure.margin, []).append(measure.name)
    if margins:
        said = "; ".join(f"{margin:g} of {joined(names)}" for margin, names in margins.items())
        yield f"Equivalent: by two one-sided tests nearer than the margin ({said})."


def _difference_cell(found: Difference | None) -> Cell:
    """A difference with its interval and p, and its verdict in words."""
    if found is None:
        return Cell(BLANK, "")
    lines = [found.limits]
    if found.change is not None:
        lines.append(f"{p_said(found.p)}{'' if found.adjusted is None else ' (Holm)'}")
        lines += [f"would show {number(found.change.detectable)}"] if found.verdict == "unclear" else []
    return Cell(signed(found.value), found.value, verdict=found.verdict, detail="\n".join(lines))


def tax_table(results: Results) -> Table | None:
    """What each branch lost in every arm that combines branches; None of a run with one skill, which has it among its arms."""
    arms = [arm for arm in results.arms if arm.taxes]
    if len(results.goals) < 3 or not arms:
        return None
    roles: list[tuple[Sequence[str], Role]] = [(results.skills, "sft"), (results.preferences, "preference")]
    references = [
        (name, reference)
        for goals, role in roles
        for name in goals
        if (reference := branch_reference(results.arms, results.measure(name), role))
    ]
    return Table(
        [
            Column("Arm", is_number=False),
            *(
                Column(name if name.startswith(reference.name) else f"{name} of {reference.name}")
                for name, reference in references
            ),
        ],
        [Row([Cell(arm.name), *(number_cell(arm.taxes.get(name), signed) for name, _ in references)]) for arm in arms],
        "taxes",
        "What each branch lost in the arms that combine branches",
        "The branch's own score less the arm's; below zero the arm has more of it than the branch.",
    )


def swap_tables(results: Results) -> list[Table]:
    """How many answers went from right to wrong, and back, from SFT alone and from the base to each arm: averages hide it."""
    base = results.first("base")
    skills = [results.measure(name) for name in results.skills]
    of_skill = {skill.name: branch_reference(results.arms, skill) for skill in skills}
    alone = next((arm for arm in of_skill.values() if arm), None)
    tables = (
        _swap_table(results, "SFT alone", {one.name: of_skill.get(one.name) or alone for one in results.measures}),
        _swap_table(results, "the base", {one.name: base for one in results.measures}),
    )
    return [table for table in tables if table]


def _swap_table(results: Results, what: str, references: Mapping[str, ArmResult | None]) -> Table | None:
    """`references`: measure → the arm that its answers were right or wrong in before."""
    known = {
        one: reference.name
        for one in results.measures
        if (reference := references[one.name])
        and any(one.name in arm.swaps.get(reference.name, {}) for arm in results.arms)
    }
    if not known:
        return None
    rows = [
        Row([Cell(arm.name), *(_swap_cell(arm.swaps.get(name, {}).get(one.name)) for one, name in known.items())])
        for arm in results.arms
        if any(name in arm.swaps for name in known.values())
    ]
    return Table(
        [Column("Arm", is_number=False), *(Column(f"{one.name} ({name})") for one, name in known.items())],
        rows,
        f"swaps-{what.split()[-1]}",
        f"Answers that changed from {what}",
        "Lost: right in the arm in brackets, wrong in this one; won: the other way round. A score that stays may hide both.",
    )


def _swap_cell(swaps: Swaps | None) -> Cell:
    return (
        Cell(BLANK, "") if swaps is None else Cell(f"{swaps.lost} lost, {swaps.won} won of {swaps.items}", swaps.lost)
    )
