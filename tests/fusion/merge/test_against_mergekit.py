"""Same recipe, same tensors as `mergekit-yaml` with its correct flags: for every method that mergekit has, and every feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit import sparsify
from mergekit.io.tasks import LoaderCache

from paft_plugin.fusion.merge import open_fusion, selection
from tests.deltas.builders import make_adapter, make_base, make_tokenizer
from tests.fusion.merge.tools import (
    METHODS,
    RANDOM,
    assert_same,
    branch,
    by_mergekit,
    content,
    fusing_methods,
    ours,
    reference,
    save,
)
from tests.fusion.world import World, make_world


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> World:
    """As `world`, on a bf16 base."""
    return make_world(tmp_path_factory.mktemp("wor ld+x@y") / "bf16", torch.bfloat16)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tied base; `narrow` changes one projection of each layer and leaves all else alone."""
    folder = tmp_path_factory.mktemp("tied")
    base = make_base(folder / "base", dtype=torch.bfloat16, tie_word_embeddings=True)
    make_tokenizer(base)
    make_adapter(base, folder / "sft", seed=1, target_modules=["q_proj", "down_proj"])
    make_adapter(base, folder / "narrow", seed=2, target_modules=["v_proj"])
    modules = {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True}
    make_adapter(base, folder / "embedding", seed=3, **modules)
    return World(folder)


def test_the_cases_are_all_methods_of_the_installed_mergekit() -> None:
    assert set(METHODS) == fusing_methods()


@pytest.mark.parametrize("branches", [("sft", "dpo"), ("sft-full", "dpo-full"), ("sft", "dpo-full")], ids="+".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method(
    method: str, dtype: str, branches: tuple[str, str], world: World, half: World, tmp_path: Path
) -> None:
    here = world if dtype == "float32" else half
    recipe = content(method, here["base"], *(branch(here, name) for name in branches), out_dtype=dtype)
    check(recipe, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_no_branch_touches_and_tied_weights(method: str, tied: World, tmp_path: Path) -> None:
    for index, names in enumerate((("sft", "narrow"), ("sft", "embedding"))):
        recipe = content(method, tied["base"], *(branch(tied, name) for name in names), out_dtype="bfloat16")
        check(recipe, tmp_path, f"{index}")


@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear", "slerp"])
@pytest.mark.parametrize("dtypes", [(None, None), ("bfloat16", None), (None, "float16"), ("float16", "float32")])
def test_any_dtype_and_out_dtype(
    method: str, dtypes: tuple[str | None, str | None], tied: World, half: World, tmp_path: Path
) -> None:
    dtype, out = dtypes
    keys = {"out_dtype": out} if out else {}
    for index, (here, second) in enumerate(((tied, "narrow"), (half, "dpo-full"))):
        recipe = content(method, here["base"], branch(here, "sft"), branch(here, second), dtype=dtype, **keys)
        check(recipe, tmp_path, f"{index}")


def test_string_references_filters_and_gradients(tmp_path: Path) -> None:
    plain = make_world(tmp_path / "plain", torch.float32)
    density = [{"filter": "mlp", "value": 0.2}, {"filter": "q_proj", "value": [0.1, 0.9]}, {"value": 0.5}]
    models = [
        {"model": f"{plain['base']}+{plain['sft']}", "parameters": {"weight": [1.0, 0.2], "density": density}},
        {"model": f"{plain['base']}+{plain['dpo']}", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": str(plain["base"])},
    ]
    for method in ("ties", "dare_ties"):
        recipe = {"merge_method": method, "base_model": str(plain["base"]), "models": models, "dtype": "float32"}
        check(recipe, tmp_path, method)


@pytest.mark.parametrize("method", ["passthrough", "dare_linear"])
def test_slices_that_repeat_and_reorder_layers(method: str, world: World, tmp_path: Path) -> None:
    """Several merged tensors come from the same inputs here: what a random method draws depends on mergekit's exact order."""
    sft, dpo = branch(world, "sft"), branch(world, "dpo")
    each = {} if method == "passthrough" else {"parameters": {"weight": 1.0, "density": 0.5}}

    def part(*models: dict[str, Any], layers: list[int]) -> dict[str, Any]:
        return {"sources": [{"model": model, "layer_range": layers, **each} for model in models]}

    if method == "passthrough":
        slices = [part(sft, layers=[0, 2]), part(dpo, layers=[1, 2]), part(sft, layers=[0, 1])]
        recipe = {"merge_method": method, "slices": slices, "dtype": "float32"}
    else:
        base = reference(world["base"])
        slices = [part(base, sft, dpo, layers=layers) for layers in ([1, 2], [0, 2], [1, 2])]
        recipe = {"merge_method": method, "slices": slices, "base_model": base, "dtype": "float32"}
    check(recipe, tmp_path)


@pytest.mark.parametrize("source", ["base", "union"])
def test_a_tokenizer_of_the_recipes(source: str, world: World, tmp_path: Path) -> None:
    recipe = content("ties", world["base"], branch(world, "sft"), branch(world, "dpo-full"))
    check({**recipe, "tokenizer": {"source": source}}, tmp_path)


def test_adapters_as_base_and_a_base_per_slice(world: World, tmp_path: Path) -> None:
    recipe = content("task_arithmetic", world["base"], branch(world, "dpo"), branch(world, "sft-full"))
    check({**recipe, "base_model": branch(world, "sft")}, tmp_path)


@pytest.mark.parametrize("method", RANDOM)
def test_the_seed_decides_what_is_dropped(method: str, world: World, tmp_path: Path) -> None:
    recipe = save(content(method, world["base"], branch(world, "sft"), branch(world, "dpo")), tmp_path / "r.yml")
    fusion = open_fusion(recipe, seed=1)
    first, again = dict(fusion.tensors()), dict(fusion.tensors())
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    other = ours(recipe, seed=2)
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize("method", RANDOM)
def test_the_stream_is_apart_from_what_else_is_drawn(method: str, world: World, tmp_path: Path) -> None:
    recipe = save(content(method, world["base"], branch(world, "sft"), branch(world, "dpo")), tmp_path / "r.yml")
    fusion = open_fusion(recipe, seed=1)
    alone = dict(fusion.tensors())
    torch.manual_seed(0)
    drawn, between = [], {}
    for name, tensor in fusion.tensors():
        between[name] = tensor
        drawn.append(torch.rand(1).item())
    assert all(torch.equal(tensor, between[name]) for name, tensor in alone.items())
    torch.manual_seed(0)
    assert drawn == [torch.rand(1).item() for _ in drawn]


def test_nothing_of_mergekits_state_is_left_changed(world: World, tmp_path: Path) -> None:
    before = {
        name: getattr(sparsify, name) for name in ("magnitude", "bernoulli", "della_magprune", "magnitude_outliers")
    }
    kept = LoaderCache.loaders
    settings = dict(vars(LoaderCache()))
    recipe = save(content("dare_ties", world["base"], branch(world, "sft"), branch(world, "dpo")), tmp_path / "r.yml")
    fusion = open_fusion(recipe)
    stopped = fusion.tensors()
    next(stopped)
    assert sparsify.bernoulli is selection.bernoulli
    stopped.close()
    assert {name: getattr(sparsify, name) for name in before} == before
    assert LoaderCache.loaders is kept
    assert vars(LoaderCache()) == settings


def check(recipe: dict[str, Any], folder: Path, name: str = "recipe") -> None:
    file = save(recipe, folder / f"{name}.yml")
    assert yaml.safe_load(file.read_text()) == recipe
    assert_same(ours(file), by_mergekit(file, folder))
