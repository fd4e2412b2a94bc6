"""Findings for people (lines of text) and for machines (JSON)."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from paft_plugin.fusion.lint.rules import Code, Finding, errors

SCHEMA = 1


def as_text(findings: list[Finding], width: int) -> list[str]:
    """Each finding as a heading with its place, the sentence and what to do, wrapped."""
    lines = []
    for finding in findings:
        place = f"{finding.file}:{finding.line}" if finding.line else str(finding.file)
        lines.append(f"{place}: {finding.severity} {finding.code} {finding.name}")
        said = f"{finding.where}: {finding.message}" if finding.where else finding.message
        lines += _wrapped(said, width) + _wrapped(f"→ {finding.fix}", width, hanging="      ")
    return lines


def summary(findings: dict[Path, list[Finding]], read_weights: bool) -> str:
    """How many there are of which kind, in one line."""
    every = [finding for found in findings.values() for finding in found]
    wrong = len(errors(every))
    counts = ", ".join((_count(wrong, "error"), _count(len(every) - wrong, "warning")))
    skipped = "" if read_weights else " Weights were not read."
    return f"{counts} in {_count(len(findings), 'recipe')}.{skipped}"


def as_json(findings: dict[Path, list[Finding]], read_weights: bool) -> dict[str, Any]:
    """For machines: every recipe with its findings, those without any too."""
    recipes = [
        {"file": str(file), "findings": [finding.as_json() for finding in found]} for file, found in findings.items()
    ]
    return {"schema": SCHEMA, "weights_read": read_weights, "recipes": recipes}


def explanation(codes: list[Code], width: int) -> list[str]:
    """What codes mean."""
    lines = []
    for code in codes:
        where = " (plain mergekit-yaml only)" if code.plain_only else ""
        lines.append(f"{code.code} {code.name}: {code.severity}{where}")
        lines += _wrapped(code.explanation, width)
    return lines


def _wrapped(text: str, width: int, hanging: str = "    ") -> list[str]:
    # Paths are not broken: they are there to be copied.
    return textwrap.wrap(
        text, width, initial_indent="    ", subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
