"""A diagnosis for a terminal: what was found, in full; what was not, in a line each, or of many branches together."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from paft_plugin.formats import measured
from paft_plugin.inspection.diagnosis.verdict import LEVELS, Check, Diagnosis, Evidence, Remedy, State
from paft_plugin.tables import Cell, Column, Row, Table, number_cell

INDENT = (0, 0, 0, 2)
MOST_IN_LINES = 9
"""Checks of which each has lines of its own: those of three branches."""
MOST_MISSING = 3
STYLES = {"found": "bold red", "clear": "green", "unknown": "yellow"}
WORDS = {"found": "FOUND", "clear": "not found", "unknown": "cannot tell"}


def as_text(diagnosis: Diagnosis) -> Group:
    """Findings first, then what else was looked at, then how many there are; where many are well, those in a line together."""
    others = [check for check in diagnosis.checks if not check.found]
    parts: list[RenderableType] = [part for check in diagnosis.findings for part in _in_full(check)]
    together = grouped(others)
    for check in others:
        if (check.state, check.signature) not in together:
            parts += [_heading(check), Padding(Text(check.message), INDENT), *_missing(check)]
    parts += [line for checks in together.values() for line in _in_one(checks)]
    return Group(*parts, _summary(diagnosis))


def grouped(checks: Sequence[Check]) -> dict[tuple[State, str], list[Check]]:
    """Checks that found nothing, those of one signature and state together; none if they are few enough to stand alone."""
    groups: dict[tuple[State, str], list[Check]] = {}
    for check in checks if len(checks) > MOST_IN_LINES else ():
        groups.setdefault((check.state, check.signature), []).append(check)
    return groups


def by_confidence(checks: Sequence[Check]) -> list[str]:
    """A line for each level of confidence that there is: the branches of those checks."""
    subjects = {
        level: [" × ".join(check.branches) for check in checks if check.confidence == level] for level in LEVELS
    }
    return [f"{level} confidence: {', '.join(names)}." for level, names in subjects.items() if names]


def _in_one(checks: Sequence[Check]) -> list[RenderableType]:
    """Which branches it is about, by how sure that is; what is missing of any once."""
    first = checks[0]
    heading = Text(f"{WORDS[first.state]}: {first.signature}", style=STYLES[first.state])
    lines = dict.fromkeys(missing for check in checks for missing in check.missing)
    more = f" and {len(lines) - MOST_MISSING} more" if len(lines) > MOST_MISSING else ""
    missing = [f"Missing: {'; '.join(list(lines)[:MOST_MISSING])}{more}"] if lines else []
    texts = [*(Text(line) for line in by_confidence(checks)), *(Text(line, style="yellow") for line in missing)]
    return [heading, *(Padding(text, INDENT) for text in texts)]


def _in_full(check: Check) -> list[RenderableType]:
    sources = ", ".join(dict.fromkeys(source for item in check.evidence for source in item.source.split(", ")))
    sure = Text(f"From {sources}.\nConfidence: {check.confidence}. {check.confidence_reason}", style="dim")
    return [
        _heading(check),
        Padding(Text(check.message, style="bold"), INDENT),
        Padding(evidence_table(check.evidence), INDENT),
        *_missing(check),
        Padding(sure, INDENT),
        *(Padding(_remedy(remedy), INDENT) for remedy in check.remedies),
        Text(),
    ]


def _heading(check: Check) -> Text:
    heading = Text(f"{WORDS[check.state]}: {check.signature}", style=STYLES[check.state])
    subject = f" · {' × '.join(check.branches)}"
    return heading.append(subject, style="default").append(f" · {check.confidence} confidence", style="dim")


def evidence_table(evidence: Sequence[Evidence], name: str = "") -> Table:
    """What a check measured, against its thresholds; `name` is the table's on a page, which says the sources, too."""
    numbers = (Column("Value"), Column("Threshold"))
    columns = [Column("Evidence", is_number=False), *numbers, Column("Speaks for it", is_number=False)]
    rows = []
    for one in evidence:
        threshold = number_cell(one.threshold, f"{'≥' if one.above else '≤'} {{:.3g}}".format)
        speaks = {None: "for scale only", True: "yes", False: "no"}[one.speaks_for] + ", barely" * one.close
        rows.append(Row([Cell(one.what, detail=one.source), number_cell(one.value, measured), threshold, Cell(speaks)]))
    return Table(columns, rows, name, "Evidence")


def _missing(check: Check) -> list[RenderableType]:
    return [Padding(Text(f"Missing: {missing}", style="yellow"), INDENT) for missing in check.missing]


def _remedy(remedy: Remedy) -> Text:
    old = f"{remedy.old} → " if remedy.old is not None else ""
    option = remedy.setting.startswith("--")
    between = "" if remedy.setting.endswith("=") else " " if option else f": {old}"
    change = f"{remedy.setting}{between}{remedy.new}"
    was = f" (was {remedy.old})" if option and remedy.old is not None else ""
    return Text("→ ").append(change, style="bold").append(f"{was} in {remedy.where}. {remedy.reason}")


def _summary(diagnosis: Diagnosis) -> Text:
    unknown = sum(check.state == "unknown" for check in diagnosis.checks)
    found = len(diagnosis.findings)
    counts = f"{found} found, {len(diagnosis.checks) - found - unknown} not found, {unknown} that cannot be told"
    who = [", ".join(names) or "none" for names in (diagnosis.sft, diagnosis.preferences, diagnosis.twins.values())]
    return Text(f"{counts}. SFT: {who[0]}, preference: {who[1]}, dense twin: {who[2]}.")
