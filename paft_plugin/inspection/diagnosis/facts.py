"""What a run left behind for a diagnosis to look at; whatever is missing is None or empty, and no error."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_plugin.deltas.proof import Proof
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import Arm, arm_named, read_run
from paft_plugin.evaluation.results import ArmResult, Measure, Results, read_results
from paft_plugin.files import PROOF_FILE, RECIPE_FILE, below, fused_files, seen_from
from paft_plugin.inspection.inspected import INSPECTION_FILE, InspectedPair, Inspection, read_inspection
from paft_plugin.inspection.measures import Measures
from paft_plugin.inspection.training_log import Curve, read_curve
from paft_plugin.reading import read_yaml_file

BRANCH_INSPECTION = Path("inspection") / "branches"
THRESHOLD = 1e-5


@dataclass(frozen=True)
class Fused:
    """One branch in a recipe, as far as it is the same for all tensors."""

    weight: float = 1.0
    density: float | None = None
    """The share of its delta that is kept; None if nothing is trimmed."""


@dataclass(frozen=True)
class Facts:
    """Everything that the checks read."""

    folder: Path
    branches: Mapping[str, Arm]
    """Name → what it is, of all that have an inspected delta, a curve or a proof."""
    inspection: Inspection | None
    inspection_file: str
    curves: Mapping[str, Curve]
    """Branch → its training."""
    proofs: Mapping[str, Proof]
    """Branch → its `paft.json`."""
    results: Results | None
    recipes: Mapping[str, Mapping[str, Fused]]
    """Arm → branch that its recipe fuses → how."""
    planned: tuple[Arm, ...] = ()
    """Every arm that the run's `run.json` names."""

    def measures(self, branch: str) -> Measures | None:
        """Of a branch's whole delta."""
        if self.inspection is None or branch not in [delta.name for delta in self.inspection.deltas]:
            return None
        return self.inspection.delta(branch).figures.total

    @property
    def threshold(self) -> float | None:
        """That of the sparsity to judge by: this project's 1e-5, or of those that were inspected the nearest to it."""
        above_zero = [each for each in (self.inspection.thresholds if self.inspection is not None else ()) if each > 0]
        return min(above_zero, key=lambda each: abs(math.log(each / THRESHOLD)), default=None)

    def goal(self, branch: str) -> Measure | None:
        """The measure of what a branch was trained for."""
        name = self.results.goal(self.branches[branch]) if self.results is not None else None
        return self.results.measure(name) if self.results is not None and name is not None else None

    def scored(self, arm: str | None, measure: Measure) -> ArmResult | None:
        """What is known of an arm; None if that measure was not taken of it."""
        found = self.results.arm(arm) if self.results is not None else None
        return found if found is not None and measure.name in found.scores else None

    def are_fused(self, *branches: str) -> bool:
        """Whether an arm of the run fuses these with each other."""
        planned = [arm.branches for arm in self.planned if arm.kind == "fused"]
        return any(set(branches) <= set(fused) for fused in (*planned, *self.recipes.values()))

    def arms_of(self, one: str, other: str) -> list[str]:
        """The arms that fuse these two, with as few others as there are any."""
        both = {arm: len(fused) for arm, fused in self.recipes.items() if {one, other} <= set(fused)}
        return [arm for arm, branches in both.items() if branches == min(both.values())]

    def option(self, setting: str, branch: str, other: str) -> str:
        """The option of `axolotl paft recipe` for a branch's `weight` or `density`, where it is fused with `other`."""
        role = self.branches[branch].role
        is_short = role != self.branches[other].role and all(
            len(self.recipes[arm]) == 2 for arm in self.arms_of(branch, other)
        )
        return f"--{setting}-{role}" if is_short else f"--{setting} {branch}="

    def density(self, branch: str, other: str) -> float | None:
        """The least share of `branch` that a recipe keeps when it fuses it with `other`; None if none trims."""
        densities = (self.recipes[arm][branch].density for arm in self.arms_of(branch, other))
        return min((density for density in densities if density is not None), default=None)

    def weights(self, one: str, other: str) -> list[tuple[float, float]]:
        """Of each recipe that fuses these two, the weights of both; equal ones if there is no recipe."""
        fused = [self.recipes[arm] for arm in self.arms_of(one, other)]
        return [(each[one].weight, each[other].weight) for each in fused] or [(1.0, 1.0)]

    def pair(self, one: str, other: str) -> InspectedPair | None:
        """Of two branches, in whichever order they were inspected."""
        pairs = () if self.inspection is None else self.inspection.pairs
        return next((pair for pair in pairs if {pair.first, pair.second} == {one, other}), None)


def read_facts(folder: Path) -> Facts:
    """Look at a run's folder, or at one that `axolotl paft inspect` wrote.

    Raises:
        PaftError: The folder is missing, holds an inspection or scores that cannot be read, or nothing that could be diagnosed.
    """
    run_inspection = folder / BRANCH_INSPECTION / INSPECTION_FILE
    if not folder.is_dir():
        raise PaftError(f"{folder}: no such folder. Give a run's, or one that `axolotl paft inspect` wrote.")
    file = next((file for file in (run_inspection, folder / INSPECTION_FILE) if file.is_file()), None)
    inspection = read_inspection(file.parent) if file is not None else None
    # The inspection remembers where a delta lay; a run that was moved since has it where runs have it.
    inspected = {delta.name: Path(delta.folder) for delta in (inspection.deltas if inspection is not None else ())}
    here = {path.name: path for path in below(folder, "branches/*") if path.is_dir()}
    folders = {**here, **{name: path for name, path in inspected.items() if name not in here}}
    curves = {name: read_curve(folder, name, path) for name, path in folders.items()}
    proofs = {name: Proof.read_or_nothing(path / PROOF_FILE) for name, path in folders.items()}
    known = [name for name in folders if curves[name] or proofs[name] or name in inspected]
    if not known:
        raise PaftError(
            f"{folder}: nothing to diagnose: neither an {INSPECTION_FILE} (run `axolotl paft inspect` first) nor branches "
            "with a training log or a paft.json."
        )
    run = read_run(folder)
    planned = {arm.name: place for place, arm in enumerate(run.arms if run is not None else ())}
    known.sort(key=lambda name: planned.get(name, len(planned)))
    return Facts(
        folder=folder,
        branches={name: arm_named(name, run.arms if run is not None else ()) for name in known},
        inspection=inspection,
        inspection_file=seen_from(folder, file or run_inspection),
        curves={name: curve for name, curve in curves.items() if curve is not None},
        proofs={name: proof for name, proof in proofs.items() if proof},
        results=read_results(folder),
        recipes={arm: _recipe(file, known) for arm, file in fused_files(folder, RECIPE_FILE).items()},
        planned=run.arms if run is not None else (),
    )


def _objects(content: Any) -> list[dict[str, Any]]:
    return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []


def _numbers(content: Any) -> dict[str, float]:
    if not isinstance(content, dict):
        return {}
    return {name: float(value) for name, value in content.items() if isinstance(value, (int, float))}


def _recipe(file: Path, branches: Collection[str]) -> dict[str, Fused]:
    """Of a mergekit recipe, the models in folders that are named like branches."""
    try:
        recipe = read_yaml_file(file)
    except PaftError:
        return {}
    fused = {}
    for model in _objects(recipe.get("models") if isinstance(recipe, dict) else None):
        # A density or weight that differs from tensor to tensor is a list, and no number.
        given = _numbers(model.get("parameters"))
        numbers = {name: abs(given[name]) for name in ("weight", "density") if given.get(name)}
        for name in {Path(text).name for text in _texts(model.get("model"))} & set(branches):
            fused[name] = Fused(**numbers)
    return fused


def _texts(content: Any) -> Iterator[str]:
    """Every text in a model's entry: a path, `base+adapter`, or both in a mapping."""
    if isinstance(content, str):
        yield from content.split("+")
    elif isinstance(content, dict):
        for value in content.values():
            yield from _texts(value)
