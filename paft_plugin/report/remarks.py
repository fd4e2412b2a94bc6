"""What checks said of a run, the diagnosis of its branches and the lint of its recipes, as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paft_plugin.drawing import joined
from paft_plugin.errors import PaftError
from paft_plugin.files import LINT_FILE, fused_files
from paft_plugin.fusion.lint.findings import Finding, LintFile
from paft_plugin.inspection.diagnosis.text import evidence_table
from paft_plugin.inspection.diagnosis.verdict import Check, Diagnosis
from paft_plugin.tables import Table

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
    """Every check: what was found, then what could not be decided, then what is well."""
    places = list(STATES)
    checks = sorted(diagnosis.checks, key=lambda check: places.index(check.state))
    return [_check_remark(check, place) for place, check in enumerate(checks)]


def _check_remark(check: Check, place: int) -> Remark:
    kind, word = STATES[check.state]
    reason = f": {check.confidence_reason}" if check.confidence_reason else "."
    return Remark(
        kind,
        f"{word}: {check.signature}" + (f" ({joined(check.branches)})" if check.branches else ""),
        check.message,
        evidence_table(check.evidence, f"evidence-{place}") if check.evidence else None,
        (f"Confidence {check.confidence}{reason}", *(f"Not looked at: {missing}." for missing in check.missing)),
        tuple(
            f"Set {remedy.setting} in {remedy.where} to {remedy.new}"
            + (f" (it is {remedy.old})" if remedy.old is not None else "")
            + f": {remedy.reason}"
            for remedy in check.remedies
        ),
    )


def lint_remarks(run: Path) -> list[Remark] | None:
    """What the recipes' checks in `run` found, errors first; None if no check was kept there."""
    files = fused_files(run, LINT_FILE)
    if not files:
        return None
    remarks = []
    for arm, file in files.items():
        try:
            found = [finding for recipe in LintFile.read(file).recipes for finding in recipe.findings]
            remarks += [_lint_remark(arm, finding) for finding in found]
        except PaftError:
            remarks.append(Remark("bad", f"Unreadable: {arm}", f"{file.relative_to(run)} is damaged."))
    return sorted(remarks, key=lambda remark: remark.kind != "bad")


def _lint_remark(arm: str, finding: Finding) -> Remark:
    where = f"{finding.where}: " if finding.where else ""
    return Remark(
        "bad" if finding.severity == "error" else "plain",
        f"{arm}: {finding.severity} {finding.code} {finding.name}",
        f"{where}{finding.message}",
        remedies=(finding.fix,),
    )
