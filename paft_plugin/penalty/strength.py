"""Strength λ over a run: what chooses it for each optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where a run stands, in optimizer steps."""

    done: int
    total: int


class Strength(Protocol):
    """λ for each optimizer step."""

    def at(self, progress: Progress) -> float:
        """λ ≥ 0 of the step that follows."""


@dataclass(frozen=True)
class Schedule:
    """A constant λ, after a linear warm-up: from λ/n to λ over the n steps that are `warmup_ratio` of the run."""

    strength: float
    warmup_ratio: float = 0.0

    def at(self, progress: Progress) -> float:
        steps = max(1, round(self.warmup_ratio * progress.total))
        return self.strength * min(1.0, (progress.done + 1) / steps)
