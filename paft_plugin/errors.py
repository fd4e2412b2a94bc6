"""The one exception for what a user can mend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class PaftError(ValueError):
    """One or more mistakes that the user can mend; each says what is wrong, where, and what to do.

    The command line prints them without a traceback and exits with 2.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def raise_if_any(problems: Sequence[str]) -> None:
    """Raise one `PaftError` with all `problems`, if there are any."""
    if problems:
        raise PaftError(problems)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


@dataclass
class Findings:
    """Full sentences: what, where, and what to do or whether it matters; each once."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, problems: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
        """Append what has not been said yet."""
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]
        self.warnings += [warning for warning in dict.fromkeys(warnings) if warning not in self.warnings]
