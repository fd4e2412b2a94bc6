"""What an examination found: problems, which forbid a fusion, and warnings, which explain what it will do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Findings:
    """Full sentences: what, where, and what to do or whether it matters; each once."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, problems: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
        """Append what has not been said yet."""
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]
        self.warnings += [warning for warning in dict.fromkeys(warnings) if warning not in self.warnings]
