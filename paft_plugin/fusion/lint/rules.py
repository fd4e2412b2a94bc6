"""What a rule of the linter is. Each rule stands above the check that finds it: its number, name, severity and reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from paft_plugin.errors import PaftError, did_you_mean
from paft_plugin.fusion.lint.findings import Finding, Severity, wrapped
from paft_plugin.schema import Keys, dotted


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
        raise PaftError(
            " ".join(filter(None, [f"--explain {asked}: no such code.", hint, "`--explain all` lists them."]))
        )
    return [
        line
        for rule in found
        for line in (f"{rule['code']} {rule['name']}: {rule['kind']}", *wrapped(rule["why"], width))
    ]


def make(rule: Rule, file: Path, line: int | None, keys: Keys, message: str, fix: str) -> Finding:
    """A finding by this rule at a place in a recipe."""
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=rule.severity,
        file=file,
        line=line,
        where=dotted(keys),
        message=message,
        fix=fix,
        plain_only=rule.plain_only,
    )
