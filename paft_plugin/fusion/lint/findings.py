"""What the linter can find (rules), and what it found: as text, as `lint.json`, and for a merge that goes by it.

Each rule stands above the check that finds it: its number, name, severity and reason.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from paft_plugin.errors import PaftError, did_you_mean, printable, raise_if_any
from paft_plugin.files import JsonFile
from paft_plugin.schema import Keys, dotted

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


@dataclass(frozen=True)
class Rule:
    """One kind of finding."""

    number: int
    """1xx: the recipe's structure, 2xx: parameters, 3xx: folders, 4xx: what the deltas hold, 5xx: plain `mergekit-yaml`."""
    name: str
    """In words, such as `unknown-key`."""
    severity: Severity
    why: str
    """What `CODES.md` and `--explain` say, in a sentence."""

    @classmethod
    def error(cls, number: int, name: str, why: str) -> Rule:
        """A new rule about what must be mended before a merge."""
        return cls(number, name, "error", why)

    @classmethod
    def warning(cls, number: int, name: str, why: str) -> Rule:
        """A new rule about what may not be as it seems."""
        return cls(number, name, "warning", why)

    def __post_init__(self) -> None:
        assert self.name not in RULES, self
        RULES[self.name] = self

    @property
    def code(self) -> str:
        """Such as `PAFT102`."""
        return f"PAFT{self.number}"

    @property
    def plain_only(self) -> bool:
        """Whether it matters to plain `mergekit-yaml` alone."""
        return self.number >= 500

    def found(self, file: Path, line: int | None, keys: Keys, message: str, fix: str) -> Finding:
        """A finding by this rule at a place in a recipe."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=self.severity,
            file=file,
            line=line,
            where=printable(dotted(keys)),
            message=printable(message),
            fix=printable(fix),
            plain_only=self.plain_only,
        )


RULES: dict[str, Rule] = {}
"""Name → rule, of every module of checks that has been imported."""

CODES = Path(__file__).with_name("CODES.md")
"""All rules for people, written from them by `python -m paft_plugin.fusion.lint.linter`; a test holds it to them."""
_SECTION = re.compile(r"^## (?P<code>PAFT\d+) `(?P<name>[\w-]+)`: (?P<kind>.+)\n\n(?P<why>.+)$", re.MULTILINE)


def codes_document() -> str:
    """What `CODES.md` holds: every rule whose module has been imported."""
    sections = ["# What `axolotl paft lint` finds"]
    for rule in sorted(RULES.values(), key=lambda rule: rule.number):
        where = " (plain mergekit-yaml only)" if rule.plain_only else ""
        sections.append(f"## {rule.code} `{rule.name}`: {rule.severity}{where}\n\n{rule.why}")
    return "\n\n".join(sections) + "\n"


def explain_rules(asked: str, width: int) -> list[str]:
    """What the rule means that is asked for by code or name, or each of them for `all`, in lines of text.

    Read from `CODES.md`, since the rules themselves stand beside checks, which import mergekit and torch.

    Raises:
        PaftError: There is none.
    """
    rules = list(_SECTION.finditer(CODES.read_text(encoding="utf-8")))
    found = [rule for rule in rules if asked in ("all", rule["name"]) or asked.upper() == rule["code"]]
    if not found:
        hint = did_you_mean(asked, [rule[key] for key in ("name", "code") for rule in rules])
        said = [f"--explain {asked}: no such code.", hint, "`--explain all` lists them."]
        raise PaftError(" ".join(filter(None, said)))
    lines = []
    for rule in found:
        lines += [f"{rule['code']} {rule['name']}: {rule['kind']}", *wrapped(rule["why"], width)]
    return lines


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
    counts = f"{_how_many(wrong, 'error')}, {_how_many(len(every) - wrong, 'warning')}"
    return f"{counts} in {_how_many(len(findings), 'recipe')}.{'' if weights_read else ' Weights were not read.'}"


def wrapped(text: str, width: int, hanging: str = "    ") -> list[str]:
    """Indented lines of at most `width`, but for paths, which are there to be copied and not broken."""
    return textwrap.wrap(
        text, width, initial_indent="    ", subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )


def _how_many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
