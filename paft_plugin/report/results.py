"""Reads `results.json`: what was measured of every arm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.results import Measure

RESULTS = "results.json"
SCHEMA = 2


@dataclass(frozen=True)
class Arm:
    """What is known of one arm; a measure that it lacks was not taken."""

    name: str
    scores: Mapping[str, float]
    stderr: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)
    alignment_tax: float | None = None
    sparsity: Mapping[str, float] = field(default_factory=dict)
    """Threshold → share of the delta's entries with |δ| ≤ threshold."""
    model: str = ""
    """Its folder, relative to the run's."""


@dataclass(frozen=True)
class Results:
    """A whole comparison."""

    measures: tuple[Measure, ...]
    skill: str | None
    """The measure of what SFT teaches."""
    preference: str | None
    """The measure of what preference training teaches."""
    thresholds: tuple[str, ...]
    arms: tuple[Arm, ...]

    def measure(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def others(self) -> list[Measure]:
        """The measures that are neither the skill nor the preference."""
        return [measure for measure in self.measures if measure.name not in (self.skill, self.preference)]


def read_results(run: Path) -> Results | None:
    """The results in the folder `run`, or None if it has none.

    Raises:
        PaftError: the file is damaged, of another schema, or contradicts itself; all that is wrong.
    """
    file = run / RESULTS
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PaftError(f"{file}: not JSON ({error}). Run the pipeline again to write it anew.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise PaftError(
            f"{file}: schema {found}, and this version reads {SCHEMA}. Run the same command again to write it anew."
        )
    try:
        results = _parsed(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"holds something unexpected ({error})"
        raise PaftError(f"{file}: {what}. Run the pipeline again to write it anew.") from None
    if problems := [f"{file}: {problem}" for problem in _contradictions(results)]:
        raise PaftError(problems)
    return results


def _parsed(content: Mapping[str, Any]) -> Results:
    return Results(
        measures=tuple(map(Measure.from_content, content["measures"])),
        skill=content.get("skill"),
        preference=content.get("preference"),
        thresholds=tuple(sorted(map(str, content.get("thresholds") or ()), key=float)),
        arms=tuple(_arm(entry) for entry in content["arms"]),
    )


def _arm(entry: Mapping[str, Any]) -> Arm:
    tax = entry.get("alignment_tax")
    return Arm(
        str(entry["arm"]),
        _numbers(entry["scores"]),
        _numbers(entry.get("stderr")),
        {name: int(count) for name, count in (entry.get("n") or {}).items() if count is not None},
        None if tax is None else float(tax),
        _numbers(entry.get("sparsity")),
        str(entry.get("model") or ""),
    )


def _numbers(mapping: Mapping[str, Any] | None) -> dict[str, float]:
    numbers = {name: float(value) for name, value in (mapping or {}).items() if value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _contradictions(results: Results) -> list[str]:
    known = {measure.name for measure in results.measures}
    problems = [
        f"{role} {name!r} is none of its measures. Correct `{role}`."
        for role, name in (("skill", results.skill), ("preference", results.preference))
        if name is not None and name not in known
    ]
    names = [arm.name for arm in results.arms]
    problems += [f"arm {name!r} is there twice. Remove one." for name in sorted(set(names)) if names.count(name) > 1]
    return problems if names else [*problems, "no arms. Run the pipeline to its end first."]
