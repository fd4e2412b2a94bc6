"""What a user chooses about the penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

L1On = Literal["delta", "factors"]
ReferencePlace = Literal["device", "host", "auto"]
Mode = Literal["subgradient", "proximal"]


@dataclass(frozen=True)
class PenaltySettings:
    """λ and what it is applied to."""

    strength: float
    """λ ≥ 0, in units of the task loss per unit of ‖δ‖₁; 0 measures and changes nothing. A controller starts here."""
    l1_on: L1On = "delta"
    mode: Mode = "subgradient"
    thresholds: tuple[float, ...] = (1e-5,)
    """Of the sparsities that are logged and recorded."""
    l2_strength: float = 0.0
    """λ₂ ≥ 0 of λ₂‖δ‖₂², which is added to the task loss as well; always on δ itself."""
    warmup_ratio: float = 0.0
    """Share of the steps over which λ rises linearly."""
    target_sparsity: float | None = None
    """Where the sparsity at `target_threshold` shall end, in (0, 1): a controller moves λ."""
    target_threshold: float = 1e-5
    reference: ReferencePlace = "auto"
    inspect_steps: int | None = None
    """Optimizer steps between two inspections of δ; None for none."""

    @property
    def all_thresholds(self) -> tuple[float, ...]:
        """Those asked for and the target's, in ascending order."""
        target = () if self.target_sparsity is None else (self.target_threshold,)
        return tuple(sorted({*self.thresholds, *target}))

    def for_record(self) -> dict[str, Any]:
        """As `paft.json` shows it; `lambda` is what the run starts with."""
        shown = ("l1_on", "mode", "warmup_ratio", "target_sparsity", "target_threshold")
        decay = {"l2_lambda": self.l2_strength} if self.l2_strength else {}
        return {"lambda": self.strength, **{name: getattr(self, name) for name in shown}, **decay}
