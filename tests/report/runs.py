"""Small run folders, made on the spot: files as the pipeline writes them, numbers from real tensors where they must fit."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paft_plugin.deltas.measures import Histogram
from paft_plugin.evaluation.arms import RUN_FILE, Arm, RunFile
from paft_plugin.evaluation.items import ITEMS_FILE, ItemScore, write_items
from paft_plugin.evaluation.results import ArmScore, Measure, ScoresFile
from paft_plugin.evaluation.statistics import wilson
from paft_plugin.files import write_json, write_text
from paft_plugin.formats import threshold_key
from paft_plugin.inspection.elections import electors
from paft_plugin.inspection.inspected import (
    Figures,
    InspectedDelta,
    InspectedPair,
    Inspection,
    TensorFigures,
    write_inspection,
)
from paft_plugin.inspection.measures import Election, Elections, Interference, Measures, Overlap, Vote
from tests.inspection import brute

MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
THRESHOLDS = (1e-5, 1e-3)
DENSITIES = (0.2, 1.0)
EDGES = tuple(-9 + place / 4 for place in range(37))
Tensors = Mapping[tuple[int, str], Tensor]


def random_delta(seed: int, scale: float, sparsity: float, layers: int = 4) -> dict[tuple[int, str], Tensor]:
    """(layer, module) → δ of 64 entries, of which about the share `sparsity` is near 1e-7."""
    generator = torch.Generator().manual_seed(seed)
    delta = {}
    for layer in range(layers):
        for module in MODULES:
            values = torch.randn(8, 8, generator=generator, dtype=torch.float64) * scale
            small = torch.rand(8, 8, generator=generator) < sparsity
            delta[layer, module] = torch.where(small, values.sign() * 1e-7, values)
    return delta


def inspect(deltas: Mapping[str, Tensors], *, with_pairs: bool = True) -> Inspection:
    """What an inspection of these deltas holds, counted the plain way."""
    names = list(deltas)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]] if with_pairs else []
    return Inspection(
        base="/base",
        thresholds=THRESHOLDS,
        densities=DENSITIES,
        deltas=tuple(
            InspectedDelta(name, "adapter", f"/runs/{name}", _histogram(tensors), _figures(tensors, _measures))
            for name, tensors in deltas.items()
        ),
        pairs=tuple(
            InspectedPair(
                one,
                other,
                _figures(
                    {
                        place: torch.stack([deltas[one][place], deltas[other][place]])
                        for place in deltas[one].keys() & deltas[other].keys()
                    },
                    _interference,
                ),
            )
            for one, other in pairs
        ),
        elections=_elections({name: deltas[name] for name in electors(names)}) if with_pairs else None,
    )


def _elections(deltas: Mapping[str, Tensors]) -> Figures[Any] | None:
    """Of deltas that change the same tensors; at every density as at 1."""
    if not deltas:
        return None

    def elections(entries: Tensor) -> Elections:
        counted = brute.election(list(entries.flatten(1)), 1.0)
        votes = {name: Vote(*map(int, counts), mass) for name, (*counts, mass) in zip(deltas, counted, strict=True)}
        return Elections(entries[0].numel(), {threshold_key(density): votes for density in DENSITIES})

    places = next(iter(deltas.values()))
    return _figures({place: torch.stack([delta[place] for delta in deltas.values()]) for place in places}, elections)


def _figures(tensors: Tensors, measured: Any) -> Figures[Any]:
    def group(chosen: Sequence[tuple[int, str]]) -> Any:
        return measured(torch.cat([tensors[place].flatten(-2) for place in chosen], dim=-1))

    places = sorted(tensors)
    return Figures(
        tensors=tuple(
            TensorFigures(f"model.layers.{layer}.{module}.weight", layer, module, (8, 8), group([(layer, module)]))
            for layer, module in places
        ),
        layers={layer: group([p for p in places if p[0] == layer]) for layer in sorted({p[0] for p in places})},
        modules={module: group([p for p in places if p[1] == module]) for module in sorted({p[1] for p in places})},
        cells={place: group([place]) for place in places},
        total=group(places),
    )


def _measures(delta: Tensor) -> Measures:
    size = delta.abs().flatten()
    ordered = size.sort(descending=True).values
    count, l1, l2 = size.numel(), float(size.sum()), float(size.norm())
    return Measures(
        entries=count,
        zeros=int((size == 0).sum()),
        small={threshold_key(threshold): int((size <= threshold).sum()) for threshold in THRESHOLDS},
        unseen={"bfloat16": int((size <= 1e-4).sum())},
        l1=l1,
        l2=l2,
        largest=float(size.max()),
        base_l2=math.sqrt(count) * 0.02,
        hoyer=(math.sqrt(count) - l1 / l2) / (math.sqrt(count) - 1) if l2 else None,
        gini=0.5 if l2 else None,
        top_1_percent=float(ordered[: max(1, count // 100)].sum()) / l1 if l1 else None,
        top_10_percent=float(ordered[: max(1, count // 10)].sum()) / l1 if l1 else None,
    )


def _interference(both: Tensor) -> Interference:
    one, other = both
    product = one * other
    return Interference(
        entries=one.numel(),
        overlap={threshold_key(threshold): _overlap(one, other, threshold) for threshold in (0.0, *THRESHOLDS)},
        agreeing=float(product.clamp(min=0).sum()),
        opposing=float(-product.clamp(max=0).sum()),
        squares=(float(one.square().sum()), float(other.square().sum())),
        ties={threshold_key(density): _election(one, other, density) for density in DENSITIES},
        dare={threshold_key(density): _election(one, other, density) for density in DENSITIES},
    )


def _overlap(one: Tensor, other: Tensor, threshold: float) -> Overlap:
    first, second = one.abs() > threshold, other.abs() > threshold
    both = first & second
    return Overlap(int(first.sum()), int(second.sum()), int(both.sum()), int((both & (one * other < 0)).sum()))


def _election(one: Tensor, other: Tensor, density: float) -> Election:
    kept = [_largest(delta, density) for delta in (one, other)]
    conflict = kept[0] & kept[1] & (one * other < 0)
    return Election(
        nonzero=(int((one != 0).sum()), int((other != 0).sum())),
        kept=(float(kept[0].sum()), float(kept[1].sum())),
        both=float((kept[0] & kept[1]).sum()),
        conflicts=float(conflict.sum()),
        lost=(
            float((conflict & (one.abs() < other.abs())).sum()),
            float((conflict & (one.abs() >= other.abs())).sum()),
        ),
    )


def _largest(delta: Tensor, density: float) -> Tensor:
    edge = delta.abs().flatten().sort(descending=True).values[max(0, int(density * delta.numel()) - 1)]
    return (delta.abs() >= edge) & (delta != 0)


def _histogram(tensors: Tensors) -> Histogram:
    size = torch.cat([delta.flatten() for delta in tensors.values()]).abs()
    edges = 10 ** torch.tensor(EDGES, dtype=torch.float64)
    inside = size[(size >= edges[0]) & (size < edges[-1])]
    counts = torch.bucketize(inside, edges, right=True).sub(1).bincount(minlength=len(EDGES) - 1)
    return Histogram(
        EDGES,
        tuple(int(count) for count in counts[: len(EDGES) - 1]),
        int((size == 0).sum()),
        int(((size > 0) & (size < edges[0])).sum()),
        int((size >= edges[-1]).sum()),
    )


ITEMS = 200
SCORES = {  # arm → skill, preference, retained
    "base": (0.18, 0.20, 1.0),
    "sft": (1.0, 0.27, 1.0),
    "sft-l1": (1.0, 0.26, 1.0),
    "dpo": (0.18, 1.0, 0.97),
    "sequential": (0.9, 0.995, 1.0),
    "parallel-ties": (0.99, 0.9, 1.0),
    "parallel-dare_ties": (0.99, 1.0, 0.79),
    "paft-ties": (1.0, 1.0, 1.0),
    "paft-dare_ties": (1.0, 0.995, 0.9),
}
MEASURES = ("skill", "preference", "retained")
RECIPE_TEXT = """\
merge_method: ties
base_model:
  model:
    path: {base}
models:
  - model: {{model: {{path: {base}}}, lora: {{path: {run}/branches/sft-l1}}}}
parameters:
  lambda: 1.0
"""
PROVENANCE = """\
## Provenance

| from | fingerprint of its content |
|---|---|
| /models/base | `0123456789abcdef` |

Merged by `axolotl paft merge` with seed 42 on cpu; mergekit 0.1.5.
"""


def results_content(scores: Mapping[str, Sequence[float | None]] = SCORES, **changes: Any) -> dict[str, Any]:
    """A `results.json` of these scores, each a share of `ITEMS` items."""

    def arm(name: str, values: Sequence[float | None]) -> dict[str, Any]:
        known = {measure: value for measure, value in zip(MEASURES, values, strict=True) if value is not None}
        is_fused = name.startswith(("parallel", "paft"))
        skill = known.get("skill")
        has_tax = (is_fused or name == "sequential") and skill is not None
        return {
            "arm": name,
            "scores": known,
            "stderr": {measure: math.sqrt(value * (1 - value) / (ITEMS - 1)) for measure, value in known.items()},
            "n": dict.fromkeys(known, ITEMS),
            "intervals": {measure: list(wilson(value * ITEMS, ITEMS)) for measure, value in known.items()},
            "taxes": {"skill": (scores["sft"][0] or 0.0) - skill} if has_tax and skill is not None else {},
            "swaps": {},
            "sparsity": {"1e-05": 0.47, "0.001": 0.5} if is_fused else None,
            "model": f"{'models' if is_fused else 'branches'}/{name}",
        }

    measures = [
        {
            "name": name,
            "task": f"my_{name}",
            "metric": "acc",
            "filter": "none",
            "higher_is_better": True,
            "margin": 0.02,
        }
        for name in MEASURES
    ]
    return {
        "schema": 3, "measures": measures,
        "validation": [], "skills": ["skill"], "preferences": ["preference"], "thresholds": ["1e-05", "0.001"],
        "arms": [arm(name, values) for name, values in scores.items()], **changes,
    }  # fmt: skip


def three_deltas() -> dict[str, dict[tuple[int, str], Tensor]]:
    """A dense SFT delta, its sparse twin, and a preference delta."""
    return {
        "sft": random_delta(0, 1e-3, 0.0),
        "sft-l1": random_delta(1, 1e-3, 0.9),
        "dpo": random_delta(2, 1e-3, 0.0),
    }


RUN_CONTENT: dict[str, Any] = {
    "schema": 1,
    "description": "Two **bold** <b>words</b>.\n\n- one `x`\n- two\n",
    "base": "base",
    "branches": ["sft", "sft-l1", "dpo"],
    "skill": "skill",
    "preference": "preference",
    "thresholds": [1e-5],
    "arms": {
        "sft": "branches/sft",
        "sft-l1": "branches/sft-l1",
        "dpo": "branches/dpo",
        "paft-ties": "models/paft-ties",
    },
    "fused": {"paft-ties": ["sft-l1", "dpo"]},
    "stages": [{"name": "sft", "title": "Train SFT", "command": ["axolotl", "train", "my configs/sft.yml"]}],
}


def run_file() -> RunFile:
    """What `RUN_CONTENT` says."""
    return RunFile.model_validate(RunFile.upgraded(RUN_CONTENT, 1, Path("run.json")))


def write_run(
    run: Path,
    *,
    results: Mapping[str, Any] | None = None,
    inspection: Inspection | None = None,
    with_branches: bool = True,
    with_models: bool = True,
) -> Path:
    """A run's folder as the pipeline leaves it; a part that is None takes the usual one."""
    write_json(run / "results.json", results_content() if results is None else results)
    write_inspection(inspect(three_deltas()) if inspection is None else inspection, run / "inspection" / "branches")
    if with_branches:
        for branch in ("sft", "sft-l1", "dpo"):
            write_branch(run, branch)
    if with_models:
        write_model(run, "paft-ties")
    write_text(run / "paft.yml", "base: base\n")
    finding = {
        "code": "PAFT301", "name": "trims-nothing", "severity": "warning", "file": "paft-ties.yml", "line": 3,
        "where": "models[0]", "message": "Density <0.5> trims nothing.", "fix": "Lower it.", "plain_only": False,
    }  # fmt: skip
    lint = {"schema": 1, "weights_read": True, "recipes": [{"file": "paft-ties.yml", "findings": [finding]}]}
    write_json(run / "lint" / "paft-ties" / "lint.json", lint)
    return run


def write_branch(run: Path, branch: str, steps: Sequence[int] = (10, 20, 30, 40)) -> None:
    """Config, record and checkpoint of a branch."""
    folder = run / "branches" / branch
    write_text(
        run / "configs" / f"{branch}.yml", f"seed: 42\ndatasets:\n  - path: owner/{branch}-data\n    type: chat\n"
    )
    history = [{"step": step, "loss": 2.0 / step + 0.1, "learning_rate": 1e-4} for step in steps]
    write_json(folder / f"checkpoint-{steps[-1]}" / "trainer_state.json", {"log_history": history})
    if branch == "sft-l1":
        points = [
            {"step": step, "lambda": 1e-6 * 3**place, "l1_norm": 100.0, "sparsity": {"1e-05": 0.2 * place + 0.2}}
            for place, step in enumerate(steps)
        ]
        target = {"target_sparsity": 0.9, "target_threshold": 1e-5}
        record = {"schema": 1, "finished": True, "steps_penalised": steps[-1], **target, "history": points}
        write_json(folder / "paft.json", {**record, "versions": {"axolotl": "0.19.0", "torch": "2.13.0"}})


def write_model(run: Path, arm: str) -> Path:
    """A fused model without its weights: what a merge writes beside them."""
    folder = run / "models" / arm
    write_text(folder / "mergekit_config.yml", RECIPE_TEXT.format(base=run / "base", run=run))
    write_text(folder / "README.md", f"---\nbase_model: []\n---\n# {arm}\n\nAs mergekit says.\n\n{PROVENANCE}")
    write_json(
        folder / "paft.json", {"schema_version": 1, "kind": "fusion", "seed": 42, "versions": {"mergekit": "0.1.5"}}
    )
    write_text(run / "base" / "config.json", json.dumps({"_name_or_path": "owner/base-7b"}))
    write_text(run / "base" / "README.md", "---\nlicense: apache-2.0\n---\n# Base\n")
    return folder


def branched_run(run: Path, skills: Sequence[str], preferences: Sequence[str], items: int = 120) -> Path:
    """A scored run of any number of branches, each with held-out rows of its own: `run.json`, `scores.json` and `items.jsonl`."""
    branches = {**dict.fromkeys(skills, "sft"), **dict.fromkeys(preferences, "preference")}
    arms = [Arm(name="base", kind="base")]
    arms += [Arm(name=name, kind="branch", role=role, branches=(name,)) for name, role in branches.items()]
    for recipe in ("ties", "task_arithmetic"):
        arms.append(Arm(name=f"paft-{recipe}", kind="fused", penalised=True, branches=tuple(branches), recipe=recipe))
    arms += [
        Arm(
            name=f"without-{name}-ties", kind="fused", penalised=True, without=name, recipe="ties",
            branches=tuple(other for other in branches if other != name),
        )
        for name in branches
    ]  # fmt: skip
    RunFile(base="base", thresholds=(1e-5,), arms=tuple(arms)).write(run / RUN_FILE)
    measures = [Measure(f"{name}_match", f"held_out/{name}", "match", "none", True) for name in skills]
    measures += [Measure(name, f"held_out/{name}", "gain", "none", True) for name in preferences]
    measures += [Measure("kl_to_base", "held_out", "kl_to_base", "none", False)]
    for place, arm in enumerate(arms):
        values = dict(_branched_values(arm, skills, preferences, items, random.Random(place)))
        folder = run / "scores" / arm.name
        found = [
            ItemScore(measure=measure, item=f"{number:04}", value=value, source="rows.jsonl")
            for measure, of_items in values.items()
            for number, value in enumerate(of_items)
        ]
        write_items(folder / ITEMS_FILE, found)
        scores = {measure: sum(of_items) / items for measure, of_items in values.items()}
        score = ArmScore(scores=scores, n=dict.fromkeys(scores, items))
        ScoresFile(measures=tuple(measures), scores={arm.name: score}).write(folder / "scores.json")
    return run


def _branched_values(
    arm: Arm, skills: Sequence[str], preferences: Sequence[str], items: int, luck: random.Random
) -> Iterator[tuple[str, list[float]]]:
    """Hard items have high numbers: what an arm has of a skill, it has of the easy ones, but for luck."""
    share = {"branch": 0.9, "fused": 0.8 if arm.recipe == "ties" else 0.65}.get(arm.kind, 0.0)
    for name in skills:
        able = share if name in arm.branches else 0.1
        yield f"{name}_match", [float(place / items + luck.gauss(0, 0.04) < able) for place in range(items)]
    for name in preferences:
        gain = 12 * share if name in arm.branches else 0.0
        yield name, [0.0 if arm.kind == "base" else gain + luck.gauss(0, 3) for _ in range(items)]
    yield "kl_to_base", [0.0 if arm.kind == "base" else abs(luck.gauss(0.1, 0.02)) for _ in range(items)]
