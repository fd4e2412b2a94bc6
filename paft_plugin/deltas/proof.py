"""`paft.json`: what the penalty's run wrote of itself beside the branch, and whether that proves that the penalty shaped it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.files import PROOF_FILE, JsonFile
from paft_plugin.formats import threshold_key
from paft_plugin.machine import installed

PACKAGES = ("paft-plugin", "axolotl", "torch", "transformers", "peft")


class HistoryPoint(BaseModel):
    """The delta after `step` optimizer steps."""

    model_config = ConfigDict(frozen=True)
    step: int
    strength: float = Field(alias="lambda")
    """λ of the last of these steps."""
    l1_norm: float | None = None
    sparsity: dict[str, float] = Field(default_factory=dict)


class Proof(JsonFile):
    """What `paft.json` holds."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Train the branch again."
    finished: bool
    """Only once the final delta has been measured."""
    strength: float | None = Field(None, alias="lambda")
    """λ that the run started with."""
    l1_on: str = "delta"
    mode: str = "subgradient"
    warmup_ratio: float = 0.0
    target_sparsity: float | None = None
    target_threshold: float | None = None
    l2_strength: float | None = Field(None, alias="l2_lambda")
    """λ₂, if the run had one."""
    max_loss_increase: float | None = None
    """Nats a token that the task loss was allowed to be above its reference."""
    reference_loss: str | None = None
    """What that reference was: a file, a folder, a number."""
    loss_increase: float | None = None
    """What the increase had come to at the end, smoothed."""
    l1_from: float | None = None
    l1_until: float | None = None
    """Shares of the run between which the penalty acted, if it was not all of it."""
    steps_penalised: int
    resumed_at_step: int = 0
    l1_norm: float | None = None
    """Of the final delta; None for one that is not finite."""
    sparsity: dict[str, float] | None = None
    """Threshold, as `threshold_key` writes it → share of the final delta's entries with |δ| ≤ threshold."""
    entries: int = 0
    tensors: tuple[str, ...] = ()
    history: tuple[HistoryPoint, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """As the file has it: a target, a bound, an L2 penalty … only if there is one."""
        content = {"schema": self.SCHEMA, **self.model_dump(mode="json", by_alias=True)}
        if self.target_sparsity is None:
            del content["target_sparsity"], content["target_threshold"]
        optional = ("l2_lambda", "max_loss_increase", "reference_loss", "loss_increase", "l1_from", "l1_until")
        return {key: value for key, value in content.items() if value is not None or key not in optional}


@dataclass(frozen=True)
class Measurement:
    """All live deltas at one moment."""

    l1_norm: float
    sparsity: dict[float, float]  # threshold → share of entries with |δ| ≤ threshold
    entries: int

    def as_json(self) -> dict[str, Any]:
        """JSON has no NaN: a training that diverged has no norm, which is no reason to lose its record."""
        shares = {threshold_key(threshold): share for threshold, share in self.sparsity.items()}
        return {"l1_norm": self.l1_norm if math.isfinite(self.l1_norm) else None, "sparsity": shares}


@dataclass
class Record:
    """What a run did so far; `write` puts it into the output directory."""

    settings: dict[str, Any]
    """What the user chose, as `paft.json` shows it."""
    tensors: Sequence[str]
    entries: int
    steps_penalised: int = 0
    resumed_at_step: int = 0
    final: Measurement | None = None
    loss_increase: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, step: int, strength: float, measurement: Measurement) -> None:
        """Add a point to the history of λ, norm and sparsity: the delta after `step` steps, λ of the last of them."""
        self.history.append({"step": step, "lambda": strength, **measurement.as_json()})

    def state(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint, as JSON."""
        # The list itself and not a copy: the Trainer asks before it logs the step, and saves after.
        return {"steps_penalised": self.steps_penalised, "history": self.history}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Go on at `step` from what `state` returned."""
        self.steps_penalised = state["steps_penalised"]
        self.history = list(state["history"])
        self.resumed_at_step = step

    def proof(self) -> Proof:
        """What `paft.json` says of the run by now."""
        return Proof(
            finished=self.final is not None,
            **self.settings,
            steps_penalised=self.steps_penalised,
            resumed_at_step=self.resumed_at_step,
            **(self.final.as_json() if self.final else {}),
            loss_increase=self.loss_increase,
            entries=self.entries,
            tensors=tuple(self.tensors),
            history=tuple(map(HistoryPoint.model_validate, self.history)),
            versions=installed(PACKAGES),
        )

    def write(self, output_dir: Path) -> None:
        """Write `paft.json` atomically."""
        self.proof().write(output_dir / PROOF_FILE)


def why_unproven(branch: Path) -> str | None:
    """Why nothing proves that the penalty ran for `branch`, in one sentence; None if its `paft.json` does."""
    file = branch / PROOF_FILE
    if not file.exists():
        return f"{branch} has no {PROOF_FILE}: nothing proves that the L1 penalty ran, its delta may well be dense."
    proof = Proof.read_or_nothing(file)
    if proof is None:
        return f"{file} cannot be read: nothing proves that the L1 penalty ran, its delta may well be dense."
    if not proof.finished:
        return f"{file} says that training did not end: the delta may not be what the penalty would have made of it."
    if proof.steps_penalised == 0 or proof.strength == 0:  # a penalty on ‖δ‖₂² alone makes nothing sparse
        return f"{file} says that no step had the L1 penalty (λ = {proof.strength}): its delta may well be dense."
    return None
