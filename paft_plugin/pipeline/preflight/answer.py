"""What the probe found out about one branch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What was found out about one branch."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    precision: dict[str, str] = field(default_factory=dict)
    """`compute` and `weights`, such as bf16 and 4 bits; empty if the config is not valid."""
    rendered: str | None = None
    """A small conversation in the chat template that the data are read with; None if they are read without one."""
    ending: str = ""
    """What comes right before an answer in the branch's rows; empty if unknown."""
    tokenizer_saved: bool = False

    def add(self, found: Any) -> None:
        """Take over problems and warnings."""
        self.problems += found.problems
        self.warnings += found.warnings
