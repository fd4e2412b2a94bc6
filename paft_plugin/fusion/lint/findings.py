"""What the linter found: for people (lines of text), for machines (`lint.json`), and for a merge that goes by it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from paft_plugin.errors import raise_if_any
from paft_plugin.files import JsonFile

Severity = Literal["error", "warning"]


class Finding(BaseModel):
    """One thing that is wrong, or not as it seems, in a recipe."""

    model_config = ConfigDict(frozen=True)

    code: str
    """Such as `PAFT102`; `axolotl paft lint --explain PAFT102` says what it means."""
    name: str
    """The code in words, such as `unknown-key`."""
    severity: Severity
    file: Path
    line: int | None
    """Line in the file, from 1; None where the finding has no place there."""
    where: str
    """Path in the YAML, such as `models[0].parameters.weight`; empty for the recipe as a whole."""
    message: str
    """What is wrong, in a sentence."""
    fix: str
    """What to do, in a sentence."""
    plain_only: bool
    """Whether it matters to plain `mergekit-yaml` alone: its flags, and the adapters that it writes out as models."""


class LintedRecipe(BaseModel):
    """One recipe with its findings."""

    model_config = ConfigDict(frozen=True)

    file: Path
    findings: tuple[Finding, ...]


class LintFile(JsonFile):
    """`lint.json`: every recipe that was looked at with its findings, those without any too."""

    SCHEMA: ClassVar[int] = 1

    weights_read: bool
    recipes: tuple[LintedRecipe, ...]

    @classmethod
    def of(cls, findings: Mapping[Path, Sequence[Finding]], weights_read: bool = True) -> LintFile:
        """The file for these recipes."""
        recipes = tuple(LintedRecipe(file=file, findings=tuple(found)) for file, found in findings.items())
        return cls(weights_read=weights_read, recipes=recipes)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that must be mended before a merge."""
    return [finding for finding in findings if finding.severity == "error"]


def for_merge(findings: Iterable[Finding]) -> list[Finding]:
    """Those that concern `axolotl paft merge`, which needs neither flags nor adapters written out as models.

    Raises:
        PaftError: There are errors among them.
    """
    own = [finding for finding in findings if not finding.plain_only]
    raise_if_any([f"{finding.code} {finding.file}: {finding.message} {finding.fix}" for finding in errors(own)])
    return own


def as_sentences(findings: Iterable[Finding]) -> list[str]:
    """Each finding in a sentence, as a merged model keeps it."""
    return [f"{finding.code}: {finding.message}" for finding in findings]


def as_text(findings: Iterable[Finding], width: int) -> list[str]:
    """Each finding as a heading with its place, the sentence and what to do, wrapped."""
    lines = []
    for finding in findings:
        place = f"{finding.file}:{finding.line}" if finding.line else str(finding.file)
        lines.append(f"{place}: {finding.severity} {finding.code} {finding.name}")
        said = f"{finding.where}: {finding.message}" if finding.where else finding.message
        lines += wrapped(said, width) + wrapped(f"→ {finding.fix}", width, hanging="      ")
    return lines


def summary(findings: Mapping[Path, Sequence[Finding]], weights_read: bool) -> str:
    """How many there are of which kind, in one line."""
    every = [finding for found in findings.values() for finding in found]
    wrong = len(errors(every))
    counts = ", ".join((_how_many(wrong, "error"), _how_many(len(every) - wrong, "warning")))
    skipped = "" if weights_read else " Weights were not read."
    return f"{counts} in {_how_many(len(findings), 'recipe')}.{skipped}"


def wrapped(text: str, width: int, hanging: str = "    ") -> list[str]:
    """Indented lines of at most `width`, but for paths, which are there to be copied and not broken."""
    return textwrap.wrap(
        text, width, initial_indent="    ", subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )


def _how_many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
