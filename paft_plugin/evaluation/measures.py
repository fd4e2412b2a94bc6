"""A measure: one number of a model that lm-eval reports, with everything that was left open settled by its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One column of a comparison, and where lm-eval reports it."""

    name: str
    """What tables and plots call it."""
    task: str
    """lm-eval's task or group."""
    metric: str
    filter: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """As lm-eval reports it."""
        return f"{self.metric},{self.filter}"

    @property
    def direction(self) -> str:
        """In the word of `direction:`, and of Optuna."""
        return "maximize" if self.higher_is_better else "minimize"

    def content(self) -> dict[str, Any]:
        """What `scores.json` and `results.json` hold of it."""
        return asdict(self)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Measure:
        """The other way round."""
        return cls(**content)
