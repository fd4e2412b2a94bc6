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
    max_loss_increase: float | None = None
    """Nats a token that the task loss may be above `reference_loss`: a controller moves λ, and gives way to it first."""
    reference_loss: str | float | None = None
    """What the loss is without a penalty: see `read_reference_loss`."""
    begin: float = 0.0
    """Share of the run before which there is no penalty."""
    end: float = 1.0
    """Share of the run after which there is none, and what is zero stays zero."""
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
        further = {
            "l2_lambda": self.l2_strength or None,
            "max_loss_increase": self.max_loss_increase,
            "reference_loss": None if self.reference_loss is None else str(self.reference_loss),
            "l1_from": self.begin or None,
            "l1_until": None if self.end == 1 else self.end,
        }
        used = {name: value for name, value in further.items() if value is not None}
        return {"lambda": self.strength, **{name: getattr(self, name) for name in shown}, **used}

    @property
    def is_steered(self) -> bool:
        """Whether a controller moves λ."""
        return self.target_sparsity is not None or self.max_loss_increase is not None
