"""Adapters as whole models beside a recipe, so that mergekit needs no flags for them.

Each is a merge of its own: one model at weight 1, in fp32. What the adapter leaves alone keeps its dtype and its bits, which
loses nothing and halves its size; mergekit and transformers read both kinds from one folder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import PaftError
from paft_plugin.files import PROOF_FILE, RECIPE_FILE, read_json, write_text
from paft_plugin.fusion.merge import Fusion, open_fusion
from paft_plugin.fusion.merge.loaders import AdapterLoader
from paft_plugin.fusion.merge.plan import MergePlan
from paft_plugin.fusion.merge.write import fill_folder
from paft_plugin.fusion.merge.writer import whole_folder
from paft_plugin.fusion.recipe.render import MATERIALIZED, MERGE_DTYPE, Recipe, adapter_recipe


class FoldedAdapter(Fusion):
    """The merge that lays an adapter on its base; what the adapter leaves alone keeps the base's dtype and bits."""

    def run(self, plan: MergePlan, quiet: bool = True) -> Iterator[tuple[str, Tensor]]:
        """As of any merge."""
        (loader,) = self.loaders.values()
        for name, tensor in super().run(plan, quiet):
            alone = name in loader.store and not loader.changes(name)
            yield name, loader.store.tensor(name) if alone else tensor


def materialize(recipe: Recipe) -> Recipe:
    """Write a recipe's adapters as whole models beside it, and return the recipe that reads these instead.

    A folder is named after what base and adapter hold, and appears only when it is whole: one that is there is reused.

    Raises:
        PaftError: All branches are whole models already, or the disk is too small.
    """
    if not any(branch.is_adapter for branch in recipe.branches):
        raise PaftError("--materialize: all branches are whole models already. Leave it out.")
    base = open_model(recipe.base)
    folder = recipe.file.parent / MATERIALIZED
    deltas = {branch.name: delta_of(base, branch.path) for branch in recipe.branches if branch.is_adapter}
    targets = {name: folder / f"{name}-{delta.fingerprint()}" for name, delta in deltas.items()}
    missing = {name: delta for name, delta in deltas.items() if not targets[name].exists()}
    _check_space(recipe.file.parent, missing)
    notes = [note for name, delta in missing.items() for note in write_whole_model(delta, targets[name])]
    wholes = tuple(replace(branch, whole=targets.get(branch.name)) for branch in recipe.branches)
    return replace(recipe, warnings=tuple(dict.fromkeys([*recipe.warnings, *notes])), branches=wholes)


def write_whole_model(delta: Delta, target: Path) -> list[str]:
    """Write a base with an adapter on it as a model's folder, whole or not at all, with the proof of the adapter's training.

    Returns what is to be said of its tensors.
    """
    with whole_folder(target) as folder:
        recipe = folder / RECIPE_FILE
        write_text(recipe, adapter_recipe(delta.base.folder, delta.branch, MERGE_DTYPE))
        fusion = open_fusion(recipe, device="cpu", kind=FoldedAdapter)
        recipe.unlink()
        fill_folder(fusion, folder, target.name)
        _check_named(delta, read_json(folder / PROOF_FILE)["models"][0])
        (folder / PROOF_FILE).unlink()  # the merge's own: to a linter the branch is what was trained
        if (delta.branch / PROOF_FILE).is_file():
            shutil.copyfile(delta.branch / PROOF_FILE, folder / PROOF_FILE)
    return fusion.notes


def _check_named(delta: Delta, model: Mapping[str, Any]) -> None:
    """The folder bears the fingerprint of what was there when it got its name: that must be what was merged."""
    if [delta.base.fingerprint, delta.branch_fingerprint()] != [model["fingerprint"], model["adapter"]["fingerprint"]]:
        raise PaftError(
            f"{delta.base.folder} or {delta.branch}: changed meanwhile. Run the same command again once nothing writes it."
        )


def whole_model_size(delta: Delta) -> int:
    """Bytes that the weights of `write_whole_model` will take."""
    loader, size = AdapterLoader(delta), 0
    for name in delta.base.names:
        dtype = loader.dtype(name) if loader.changes(name) else loader.stored_dtype(name)
        size += math.prod(delta.base.shape(name)) * dtype.itemsize
    return size


def _check_space(folder: Path, deltas: Mapping[str, Delta]) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    wanted, free = sum(map(whole_model_size, deltas.values())), shutil.disk_usage(existing).free
    if wanted > free:
        raise PaftError(
            f"--materialize: {existing} has {free / 1e9:.1f} GB free, and the whole models of {' and '.join(deltas)} take "
            f"{wanted / 1e9:.1f} GB. Give an --output on a larger disk, or leave --materialize out."
        )
