"""One finding of the linter: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from paft_plugin.fusion.lint.codes import CODES

Keys = tuple[str | int, ...]
"""Keys and list positions that lead to a value in the recipe."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or not as it seems, in a recipe."""

    code: str
    """Such as `PAFT102`; `codes.CODES` explains each."""
    name: str
    """The code in words, such as `unknown-key`."""
    severity: Literal["error", "warning"]
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

    def as_json(self) -> dict[str, Any]:
        """For `--json`: plain values under the fields' names."""
        return {**asdict(self), "file": str(self.file)}


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that must be mended before a merge."""
    return [finding for finding in findings if finding.severity == "error"]


def dotted(keys: Keys) -> str:
    """`models[0].parameters.weight`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def make(name: str, file: Path, line: int | None, keys: Keys, message: str, fix: str) -> Finding:
    """A finding of the code with this name."""
    code = CODES[name]
    return Finding(code.code, name, code.severity, file, line, dotted(keys), message, fix, code.plain_only)
