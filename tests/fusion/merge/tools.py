"""Recipes in their simplest form, and a merge of them by mergekit's own command line and by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit import merge_methods
from mergekit.architecture.auto import infer_architecture_info
from mergekit.io.tasks import LoaderCache
from safetensors.torch import load_file
from torch import Tensor

from paft_plugin.fusion.merge import open_fusion
from paft_plugin.fusion.recipe.methods import TIES_GLOBAL
from tests.fusion.mergekit_runs import run_mergekit
from tests.fusion.world import World

Tensors = dict[str, Tensor]
SEED = 7

# Every method of mergekit that fuses two branches → (parameters of each branch, shared parameters).
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ties": ({"weight": 0.9, "density": 0.3}, {}),
    "dare_ties": ({"weight": 1.0, "density": 0.4}, {}),
    "dare_linear": ({"weight": 0.7, "density": 0.4}, {"lambda": 0.8}),
    "della": ({"weight": 1.0, "density": 0.5, "epsilon": 0.2}, {}),
    "della_linear": ({"weight": 1.0, "density": 0.5}, {}),
    "breadcrumbs": ({"weight": 1.0, "density": 0.5, "gamma": 0.05}, {}),
    "breadcrumbs_ties": ({"weight": 1.0, "density": 0.5}, {}),
    "task_arithmetic": ({"weight": 0.6}, {}),
    "linear": ({"weight": 0.3}, {}),
    "slerp": ({}, {"t": 0.3}),
    "nuslerp": ({"weight": 0.3}, {}),
    "multislerp": ({"weight": 0.3}, {}),
    "karcher": ({}, {}),
    "sce": ({}, {"select_topk": 0.5}),
    "model_stock": ({}, {}),
    "ram": ({}, {}),
    "ramplus_tl": ({}, {}),
    "nearswap": ({}, {"t": 1e-3}),
    "arcee_fusion": ({}, {}),
}
RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")
PAIRS = ("slerp", "nearswap", "arcee_fusion")
BASELESS = ("linear", "karcher")


def reference(model: Path, adapter: Path | None = None) -> dict[str, Any]:
    """A model in a recipe, in the form that takes any path."""
    return {"model": {"path": str(model)}, **({"lora": {"path": str(adapter)}} if adapter else {})}


def branch(world: World, name: str) -> dict[str, Any]:
    """A branch in a recipe, by its name in the world."""
    if (world[name] / "adapter_config.json").is_file():
        return reference(world["base"], world[name])
    return reference(world[name])


def content(
    method: str, base: Path, *branches: dict[str, Any], dtype: str | None = "float32", **keys: Any
) -> dict[str, Any]:
    """A recipe of one method with the parameters of `METHODS`."""
    each, shared = METHODS[method]
    recipe: dict[str, Any] = {"merge_method": method, "models": [_model(branch, each) for branch in branches]}
    if method in PAIRS:
        recipe["base_model"] = branches[0]
    elif method not in BASELESS:
        recipe["base_model"] = reference(base)
    if shared:
        recipe["parameters"] = dict(shared)
    return {**recipe, **({"dtype": dtype} if dtype else {}), **keys}


def save(recipe: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def by_mergekit(recipe: Path, folder: Path, *flags: str) -> Tensors:
    """The tensors that `mergekit-yaml` writes, with its correct flags and an empty cache, as on a fresh machine."""
    LoaderCache.loaders.clear()
    infer_architecture_info.cache_clear()
    out = folder / f"mergekit-{recipe.stem}"
    cache = ["--lora-merge-cache", str(folder / f"cache-{recipe.stem}"), "--lora-merge-dtype", "float32"]
    try:
        run_mergekit(["mergekit-yaml", str(recipe), str(out), *cache, "--random-seed", str(SEED), *flags])
    finally:
        LoaderCache.loaders.clear()
    return load_all(out)


def ours(recipe: Path, seed: int = SEED) -> Tensors:
    """The tensors that we fuse, none of them written."""
    return {name: tensor.clone() for name, tensor in open_fusion(recipe, seed, "cpu").tensors()}


def load_all(folder: Path) -> Tensors:
    """All tensors of a model, sharded or not."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(one: Tensors, other: Tensors) -> None:
    """Same tensors, same dtypes; in half precision identical, else equal within 1e-6."""
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        tolerance = 1e-6 if tensor.dtype == torch.float32 else 0.0
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=0, msg=name)


def fusing_methods() -> set[str]:
    """What the installed mergekit registers, without passthrough, which takes one model."""
    return {method.spec.name for method in merge_methods.registered_methods()} - {"passthrough", TIES_GLOBAL}


def _model(branch: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return {"model": branch, **({"parameters": dict(parameters)} if parameters else {})}
