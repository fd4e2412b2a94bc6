"""Gathers what the stages of a run left behind: `run.json` says what there should be, scores and inspections what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_plugin.deltas.store import read_json
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import BASE_ARM, ArmResult, Comparison
from paft_plugin.evaluation.scores import read_scores
from paft_plugin.inspection.inspected import INSPECTION_FILE, InspectedDelta, read_inspection
from paft_plugin.thresholds import threshold_key

RUN_FILE = Path("configs") / "run.json"
SCHEMA = 1
INSPECTIONS = (Path("inspection") / "branches", Path("inspection") / "fused")


@dataclass(frozen=True)
class Step:
    """One stage, as a person in the run's folder would do it by hand."""

    name: str
    title: str
    command: Sequence[str]


@dataclass(frozen=True)
class RunFile:
    """`configs/run.json`, which the pipeline writes before any stage starts."""

    description: str
    """What the user says of it, in Markdown; may be empty."""
    base: str
    branches: frozenset[str]
    """Arms that are one branch each."""
    skill: str | None
    preference: str | None
    thresholds: Sequence[float]
    arms: Mapping[str, str]
    """Arm → folder of its model, relative to the run's where it lies in it; in the order of the table."""
    fused: Mapping[str, Sequence[str]]
    """Fused arm → the branches that it is made from."""
    steps: Sequence[Step]


def read_run(run_dir: Path) -> RunFile | None:
    """What the run in `run_dir` is made of; None where there is no run.

    Raises:
        PaftError: `run.json` is damaged or of another version.
    """
    file = run_dir / RUN_FILE
    if not file.is_file():
        return None
    content: dict[str, Any] = read_json(file)
    if content.get("schema") != SCHEMA:
        raise PaftError(f"{file}: its schema is {content.get('schema')}, not {SCHEMA}. Run `axolotl paft run` again.")
    return RunFile(
        content["description"],
        content["base"],
        frozenset(content["branches"]),
        content["skill"],
        content["preference"],
        content["thresholds"],
        content["arms"],
        content["fused"],
        [Step(each["name"], each["title"], each["command"]) for each in content["stages"]],
    )


def collect(run_dir: Path, run: RunFile) -> Comparison:
    """Every arm's scores, and the sparsity of its delta over the tensors that the branches change.

    Of a fused model the other tensors are left out: they are the base's, and would make any delta look sparse.
    """
    files = (run_dir / "scores" / arm / "scores.json" for arm in run.arms)
    measures, scores = read_scores(file for file in files if file.is_file())
    sparsities = _sparsities(run_dir, run)
    results = [
        ArmResult.from_score(arm, scores[arm], sparsity=sparsities.get(arm), model=model)
        if arm in scores
        else ArmResult(arm, sparsity=sparsities.get(arm), model=model)
        for arm, model in run.arms.items()
    ]
    return Comparison(measures, results, run.branches, run.skill, run.preference)


def _sparsities(run_dir: Path, run: RunFile) -> dict[str, dict[str, float]]:
    """Arm → threshold → share of entries with |δ| ≤ threshold; the base model's delta is zero."""
    inspections = [
        read_inspection(run_dir / place) for place in INSPECTIONS if (run_dir / place / INSPECTION_FILE).is_file()
    ]
    if not inspections:
        return {}
    changed = {tensor.name for delta in inspections[0].deltas for tensor in delta.figures.tensors}
    found = {BASE_ARM: {threshold_key(threshold): 1.0 for threshold in run.thresholds}}
    for inspection in inspections:
        for delta in inspection.deltas:
            found[delta.name] = _over(delta, changed, run.thresholds)
    return found


def _over(delta: InspectedDelta, names: set[str], thresholds: Sequence[float]) -> dict[str, float]:
    figures = [tensor.figures for tensor in delta.figures.tensors if tensor.name in names]
    entries = sum(each.entries for each in figures)
    keys = [threshold_key(threshold) for threshold in thresholds]
    return {key: sum(each.small[key] for each in figures) / entries for key in keys} if entries else {}
