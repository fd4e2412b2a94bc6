"""Whether an SFT branch can prove that the penalty shaped it: its `paft.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paft_plugin.files import PROOF_FILE, write_json
from paft_plugin.formats import threshold_key

SCHEMA = 1
PACKAGES = ("paft-plugin", "axolotl", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Measurement:
    """All live deltas at one moment."""

    l1_norm: float
    sparsity: dict[float, float]  # threshold → share of entries with |δ| ≤ threshold
    entries: int


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
    history: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, step: int, strength: float, measurement: Measurement) -> None:
        """Add a point to the history of λ, norm and sparsity: the delta after `step` steps, λ of the last of them."""
        self.history.append({"step": step, "lambda": strength, **_for_json(measurement)})

    def state(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint, as JSON."""
        # The list itself and not a copy: the Trainer asks before it logs the step, and saves after.
        return {"steps_penalised": self.steps_penalised, "history": self.history}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Go on at `step` from what `state` returned."""
        self.steps_penalised = state["steps_penalised"]
        self.history = list(state["history"])
        self.resumed_at_step = step

    def content(self) -> dict[str, Any]:
        """What `paft.json` holds; `finished` is true only once the final delta has been measured."""
        measured = _for_json(self.final) if self.final else {"l1_norm": None, "sparsity": None}
        return {
            "schema": SCHEMA,
            "finished": self.final is not None,
            **self.settings,
            "steps_penalised": self.steps_penalised,
            "resumed_at_step": self.resumed_at_step,
            **measured,
            "entries": self.entries,
            "tensors": list(self.tensors),
            "history": self.history,
            "versions": {package: version(package) for package in PACKAGES},
        }

    def write(self, output_dir: Path) -> None:
        """Write `paft.json` atomically."""
        write_json(output_dir / PROOF_FILE, self.content())


def _for_json(measurement: Measurement) -> dict[str, Any]:
    """JSON has no NaN: a training that diverged has no norm, which is no reason to lose its record."""
    shares = {threshold_key(threshold): share for threshold, share in measurement.sparsity.items()}
    return {"l1_norm": measurement.l1_norm if math.isfinite(measurement.l1_norm) else None, "sparsity": shares}


def why_unproven(branch: Path) -> str | None:
    """Why nothing proves that the penalty ran for `branch`, in one sentence; None if its `paft.json` does."""
    file = branch / PROOF_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        finished, steps = bool(record["finished"]), int(record["steps_penalised"])
    except FileNotFoundError:
        return f"{branch} has no {PROOF_FILE}: nothing proves that the L1 penalty ran, its delta may well be dense."
    except (OSError, ValueError, KeyError, TypeError):
        return f"{file} cannot be read: nothing proves that the L1 penalty ran, its delta may well be dense."
    if not finished:
        return f"{file} says that training did not end: the delta may not be what the penalty would have made of it."
    if steps == 0:
        return f"{file} says that no step was penalised (λ = {record.get('lambda')}): its delta may well be dense."
    return None
