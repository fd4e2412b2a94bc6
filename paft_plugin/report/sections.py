"""Sections of a run's page: what checks said of it (the diagnosis of its branches, the lint of its recipes), and its search."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from paft_plugin.drawing import Missing, joined
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import RunFile
from paft_plugin.files import LINT_FILE, fused_files, inside, read_json
from paft_plugin.formats import measured, number
from paft_plugin.fusion.lint.findings import Finding, LintFile
from paft_plugin.inspection.diagnosis.text import by_confidence, evidence_table, grouped
from paft_plugin.inspection.diagnosis.verdict import Check, Diagnosis
from paft_plugin.reading import read_bytes
from paft_plugin.report.page import Shown
from paft_plugin.tables import Cell, Column, Row, Table, number_cell

Kind = Literal["bad", "good", "plain"]
STATES: dict[str, tuple[Kind, str]] = {
    "found": ("bad", "Found"),
    "unknown": ("plain", "Cannot be decided"),
    "clear": ("good", "Not found"),
}


@dataclass(frozen=True)
class Remark:
    """One finding, or the news that there is none."""

    kind: Kind
    label: str
    """What it is, in two or three words: severity and code, or signature and branches."""
    said: str
    evidence: Table | None = None
    notes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


def diagnosis_remarks(diagnosis: Diagnosis) -> list[Remark]:
    """Every check: what was found, then what could not be decided, then what is well; of many branches these two together."""
    checks = sorted(diagnosis.checks, key=lambda check: list(STATES).index(check.state))
    together = grouped([check for check in checks if not check.found])
    alone = [check for check in checks if (check.state, check.signature) not in together]
    return [
        *(_check_remark(check, place) for place, check in enumerate(alone)),
        *(
            Remark(STATES[state][0], f"{STATES[state][1]}: {signature}", " ".join(by_confidence(group)))
            for (state, signature), group in together.items()
        ),
    ]


def _check_remark(check: Check, place: int) -> Remark:
    kind, word = STATES[check.state]
    branches = f" ({joined(check.branches)})" if check.branches else ""
    reason = f": {check.confidence_reason}" if check.confidence_reason else "."
    notes = (f"Confidence {check.confidence}{reason}", *(f"Not looked at: {missing}." for missing in check.missing))
    evidence = evidence_table(check.evidence, f"evidence-{place}") if check.evidence else None
    remedies = []
    for remedy in check.remedies:
        before = f" (it is {remedy.old})" if remedy.old is not None else ""
        remedies.append(f"Set {remedy.setting.rstrip('=')} in {remedy.where} to {remedy.new}{before}: {remedy.reason}")
    return Remark(kind, f"{word}: {check.signature}{branches}", check.message, evidence, notes, tuple(remedies))


UNPROVEN = "unproven"
"""What lint calls a fusion of which nothing proves that the penalty ran: no news of an arm that was to be dense."""


def made_for(planned: RunFile | None) -> Callable[[str], bool]:
    """Whether a branch or model in the folder is part of the run as it is now, rather than left by arms that it had once."""
    if planned is None:
        return lambda _: True
    arms = {name for arm in planned.arms for name in (arm.name, *arm.branches, *arm.order)}
    return ({stage.name for stage in planned.stages} | arms).__contains__


def lint_remarks(run: Path, planned: RunFile | None) -> list[Remark] | None:
    """What the recipes' checks in `run`, as it was `planned`, found, errors first; None if no check was kept there."""
    is_there = made_for(planned)
    files = {arm: file for arm, file in fused_files(run, LINT_FILE).items() if is_there(arm)}
    if not files:
        return None
    dense = {arm.name for arm in planned.arms if not arm.penalised} if planned is not None else set()
    remarks = []
    for arm, file in files.items():
        try:
            found = [finding for recipe in LintFile.read(file).recipes for finding in recipe.findings]
            remarks += [
                _lint_remark(arm, finding) for finding in found if not (arm in dense and finding.name == UNPROVEN)
            ]
        except PaftError:
            remarks.append(Remark("bad", f"Unreadable: {arm}", f"{file.relative_to(run)} is damaged."))
    return sorted(remarks, key=lambda remark: remark.kind != "bad")


def _lint_remark(arm: str, finding: Finding) -> Remark:
    kind: Kind = "bad" if finding.severity == "error" else "plain"
    label = f"{arm}: {finding.severity} {finding.code} {finding.name}"
    said = f"{finding.where}: {finding.message}" if finding.where else finding.message
    return Remark(kind, label, said, remedies=(finding.fix,))


MOST_BYTES = 1 << 20
"""Of the search's plot: the whole page stays under 3 MB."""


@dataclass(frozen=True)
class SearchPart:
    """What `axolotl paft search` left: its own plot, and the trials that nothing beats as a table."""

    said: str
    table: Table
    plot: Shown | Missing


def search_part(run: Path) -> SearchPart | Missing | None:
    """The search in `run`; None without one."""
    file = inside(run, "search/trials.json")
    if not file.is_file():
        return None
    try:
        return _part(run, read_json(file))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return Missing("search", "Search of merge settings", f"{file.relative_to(run)} is damaged.")


def _part(run: Path, content: dict[str, Any]) -> SearchPart:
    goals = [str(goal["name"]) for goal in content["objectives"]]
    trials = [trial for trial in content["trials"] if trial["scores"] is not None]
    front = [trial for trial in trials if trial["on_front"]]
    start = content["start_with"]
    rows = [
        Row(
            [
                Cell(f"{trial['number']}", trial["number"]),
                Cell(str(trial["method"])),
                Cell(", ".join(f"{name} {measured(value)}" if isinstance(value, float) else f"{name} {value}"
                               for name, value in trial["options"].items()) or "defaults"),
                *(number_cell(trial["scores"].get(goal), number, (trial["stderr"] or {}).get(goal)) for goal in goals),
            ],
            is_marked=trial["number"] == start,
            tag="start here" if trial["number"] == start else "on the front" if trial["on_front"] else "defaults",
        )
        for trial in [*front, *(trial for trial in trials if trial["is_default"] and not trial["on_front"])]
    ]  # fmt: skip
    said = (
        f"{len(content['trials'])} trials on validation items, {len(trials)} of them scored; nothing beats {len(front)}. "
        "The best of many trials flatters itself: only other items can judge."
    )
    table = Table(
        [Column("Trial"), Column("Method", is_number=False), Column("Settings", is_number=False), *map(Column, goals)],
        rows,
        "trials",
        "The trials on the front, and each method at its defaults",
    )
    return SearchPart(said, table, _plot(run, goals, front, start))


def _plot(run: Path, goals: list[str], front: list[dict[str, Any]], start: int | None) -> Shown | Missing:
    name, title = "front", "The Pareto front of the search" if len(goals) > 1 else "The course of the search"
    file = inside(run, "search/front.png")
    if not file.is_file():
        return Missing(name, title, f"{file.relative_to(run)} is not there.")
    content = read_bytes(file)
    if len(content) > MOST_BYTES:
        return Missing(name, title, f"{file.relative_to(run)} is too large for this page: look at it there.")
    alt = f"Scatter charts of the trials by {', '.join(goals)}." if len(goals) > 1 else f"Chart of {goals[0]} by trial."
    caption = f"Filled and numbered: the {len(front)} trials that no other beats"
    caption += "." if start is None else f"; trial {start} gives up least of the best of any objective."
    picture = f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode("ascii")}">'
    return Shown(name, title, caption, Markup(picture), wide=True)  # noqa: S704 - its one text is escaped
