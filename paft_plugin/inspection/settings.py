"""What an inspection measures at: thresholds and densities, with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paft_plugin.errors import raise_if_any

THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3)
"""1e-5 is that of arXiv 2505.11711; our own choice are the others around it."""
DENSITIES = (0.1, 0.2, 0.5, 1.0)
"""Our own choice; mergekit's TIES recipes mostly have 0.2 or 0.5."""


@dataclass(frozen=True)
class Settings:
    """Checked and in order.

    Raises:
        PaftError: a threshold that is negative or no number, a density outside of (0, 1]; all at once.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    densities: tuple[float, ...] = DENSITIES
    pairs: bool = True
    """Whether to compare every two deltas."""

    def __post_init__(self) -> None:
        raise_if_any(
            [
                f"threshold {each}: not a number ≥ 0. Give one like 1e-5."
                for each in self.thresholds
                if not (math.isfinite(each) and each >= 0)
            ]
            + [
                f"density {each}: not a share in (0, 1]. Give one like 0.2."
                for each in self.densities
                if not 0 < each <= 1
            ]
        )
        object.__setattr__(self, "thresholds", tuple(sorted(set(map(float, self.thresholds)))))
        # Before trimming is what every other density is compared with.
        object.__setattr__(self, "densities", tuple(sorted({*map(float, self.densities), 1.0})))
