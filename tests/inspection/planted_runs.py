"""Runs' folders with what a diagnosis reads, planted: deltas of random numbers, losses, proofs, recipes, scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from paft_plugin.deltas.measures import Histogram
from paft_plugin.evaluation.arms import RUN_FILE, Arm, RunFile
from paft_plugin.evaluation.items import ITEMS_FILE, ItemScore, write_items
from paft_plugin.formats import threshold_key
from paft_plugin.inspection.inspected import Figures, InspectedDelta, InspectedPair, Inspection, write_inspection
from paft_plugin.inspection.measures import Election, Interference, Measures, Overlap

ENTRIES = 20_000
THRESHOLDS = (1e-6, 1e-5)


@dataclass
class PlantedRun:
    """What `write` puts into a folder."""

    deltas: Mapping[str, Tensor]
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Branch → loss at the start and at the end."""
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Arm → branch → its parameters."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Arm → measure → share; the skill is called `sums`, the preference `manners`."""
    n: dict[str, int] = field(default_factory=dict)
    """Measure → its items, of which the standard errors are those of shares; else they are 0.01."""
    items: dict[str, dict[str, Sequence[float]]] = field(default_factory=dict)
    """Arm → measure → what it came to on each item."""
    measures: Sequence[dict[str, Any]] = (
        {"name": "sums", "task": "sums", "metric": "acc", "filter": "none", "higher_is_better": True},
        {"name": "manners", "task": "manners", "metric": "acc", "filter": "none", "higher_is_better": True},
    )

    def write(self, folder: Path) -> Path:
        write_inspection(inspection_of(self.deltas), folder / "inspection" / "branches")
        for name, (start, end) in self.losses.items():
            history = [{"step": 10 * n, "loss": start + (end - start) * min(1, n / 7)} for n in range(11)]
            state = folder / "branches" / name / "checkpoint-100" / "trainer_state.json"
            put(state, {"log_history": history})
        for name, proof in self.proofs.items():
            put(folder / "branches" / name / "paft.json", proof)
        for arm, branches in self.recipes.items():
            models = [
                {"model": str(folder / "branches" / name), "parameters": parameters}
                for name, parameters in branches.items()
            ]
            put(folder / "models" / arm / "recipe.yml", {"merge_method": "ties", "models": models})
        if self.scores:
            arms = [
                {
                    "arm": arm,
                    "scores": scores,
                    "n": self.n,
                    "stderr": {name: self.error(name, p) for name, p in scores.items()},
                }
                for arm, scores in self.scores.items()
            ]
            goals = dict(zip(("skill", "preference"), [measure["name"] for measure in self.measures], strict=False))
            put(folder / "results.json", {"schema": 2, "measures": self.measures, **goals, "arms": arms})
        for arm, by_measure in self.items.items():
            items = [
                ItemScore(measure=name, item=f"{name} {place}", value=value)
                for name, values in by_measure.items()
                for place, value in enumerate(values)
            ]
            write_items(folder / "scores" / arm / ITEMS_FILE, items)
        return folder

    def error(self, measure: str, score: float) -> float:
        """The standard error of a score."""
        n = self.n.get(measure, 0)
        return math.sqrt(score * (1 - score) / (n - 1)) if n and 0 <= score <= 1 else 0.01


def put(file: Path, content: Any) -> None:
    """Write JSON, which YAML is too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content) if file.suffix == ".yml" else json.dumps(content))


def proof(strength: float = 1e-4, steps: int = 100, **more: Any) -> dict[str, Any]:
    return {"schema": 1, "finished": True, "lambda": strength, "l1_on": "delta", "steps_penalised": steps, **more}


def dense(seed: int, scale: float = 1e-3) -> Tensor:
    return scale * torch.randn(ENTRIES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sparse(seed: int, share: float = 0.04, scale: float = 2e-3) -> Tensor:
    """Few entries of some size, the others as good as zero."""
    generator = torch.Generator().manual_seed(seed + 1000)
    chosen = torch.rand(ENTRIES, generator=generator, dtype=torch.float64) < share
    return torch.where(chosen, dense(seed, scale), dense(seed + 500, scale * 1e-4))


def inspection_of(deltas: Mapping[str, Tensor]) -> Inspection:
    """Of deltas of one tensor, entry by entry, in fp64."""
    names = list(deltas)
    return Inspection(
        base="/base",
        thresholds=THRESHOLDS,
        densities=(1.0,),
        deltas=tuple(
            InspectedDelta(name, "model", "/nowhere", histogram(delta), only(measures(delta)))
            for name, delta in deltas.items()
        ),
        pairs=tuple(
            InspectedPair(one, other, only(interference(deltas[one], deltas[other])))
            for index, one in enumerate(names)
            for other in names[index + 1 :]
        ),
    )


def only(figures: Any) -> Figures[Any]:
    return Figures(figures, {}, {}, {}, ())


def measures(delta: Tensor) -> Measures:
    size, n = delta.abs().sort().values, delta.numel()
    l1, l2 = float(size.sum()), float(size.norm())
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return Measures(
        entries=n,
        zeros=int((size == 0).sum()),
        small={threshold_key(threshold): int((size <= threshold).sum()) for threshold in THRESHOLDS},
        unseen={},
        l1=l1,
        l2=l2,
        largest=float(size[-1]),
        base_l2=3.0,
        hoyer=None,
        gini=float((2 * (ranks * size).sum() / (n * l1)) - (n + 1) / n) if l1 else None,
        top_1_percent=None,
        top_10_percent=None,
    )


def histogram(delta: Tensor) -> Histogram:
    edges = [step / 10 for step in range(-120, 21)]
    size = delta[delta != 0].abs().log10()
    counts = torch.histc(size, bins=len(edges) - 1, min=edges[0], max=edges[-1])
    return Histogram(
        tuple(edges), tuple(int(count) for count in counts), int((delta == 0).sum()), int((size < -12).sum())
    )


def interference(one: Tensor, other: Tensor) -> Interference:
    product = one * other
    kept = int((one != 0).sum()), int((other != 0).sum())
    conflicts = product < 0
    lost = float((conflicts & (one.abs() < other.abs())).sum()), float((conflicts & (one.abs() > other.abs())).sum())
    both = int((product != 0).sum())
    merged = torch.sign(one + other)
    mass = tuple(float(each[torch.sign(each) == merged].abs().sum()) for each in (one, other))
    total = kept[0] + 0.0, kept[1] + 0.0
    return Interference(
        entries=one.numel(),
        overlap={"0.0": Overlap(*kept, both, int(conflicts.sum()))},
        agreeing=float(product.clamp(min=0).sum()),
        opposing=float(-product.clamp(max=0).sum()),
        squares=(float(one.square().sum()), float(other.square().sum())),
        ties={"1.0": Election(kept, total, float(both), float(conflicts.sum()), lost, (mass[0], mass[1]))},
        dare={},
        l1=(float(one.abs().sum()), float(other.abs().sum())),
    )


def plan(folder: Path, *fused: str, preference: str = "dpo", twin: str = "sft") -> None:
    """Write the `run.json` of a run in which each penalised branch of `fused` is fused with the preference branch."""
    branches = [
        Arm(name=twin, kind="branch", role="sft", branches=(twin,)),
        *(Arm(name=name, kind="branch", role="sft", penalised=True, branches=(name,), twin=twin) for name in fused),
        Arm(name=preference, kind="branch", role="preference", branches=(preference,)),
    ]
    arms = [Arm(name=f"paft-{name}", kind="fused", branches=(name, preference)) for name in fused]
    RunFile(base="base", arms=(*branches, *arms)).write(folder / RUN_FILE)
