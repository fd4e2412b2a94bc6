"""What is right is left alone: every method's own recipe on sparse, dense and LoRA branches, and a plain stranger's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paft_plugin.fusion.lint.linter import lint_recipe
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.render import two_branches
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from tests.fusion.lint.bench import Bench

TRUE_WARNINGS = {
    ("sce", "sparse"): {"sce-uniform"},
    ("sce", "dense"): {"sce-uniform"},
    ("sce", "adapters"): {"sce-uniform"},
    ("model_stock", "sparse"): {"stock-returns-base"},
    ("model_stock", "dense"): {"stock-returns-base"},
    ("model_stock", "adapters"): {"stock-returns-base"},
    ("della", "sparse"): {"della-ranks-zeros"},
    ("della_linear", "sparse"): {"della-ranks-zeros"},
}
"""Where no choice of parameters helps: the method itself is none for such deltas, and the user should hear it."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", ["sparse", "dense", "adapters"])
def test_a_methods_own_recipe(bench: Bench, method: str, pair: str) -> None:
    folder: Path = getattr(bench, pair)
    request = RecipeRequest(
        folder / "base", two_branches(folder / "sft", folder / "preference"), method, bench.own / "r.yml"
    )
    write_recipe(request)
    findings = lint_recipe(request.output)
    assert {finding.name for finding in findings} == TRUE_WARNINGS.get((method, pair), set()), findings


@pytest.mark.parametrize("materialize", [True, False])
def test_adapters_beside_models_filters_and_scales(bench: Bench, materialize: bool) -> None:
    folder = bench.adapters
    filters = ["mlp:density-sft=0.1", "self_attn:weight-preference=0.7"]
    settings = RecipeSettings(density=0.3, weight_sft=0.4, scale=0.8, filter=filters)
    branches = two_branches(folder / "sft", folder / "preference")
    request = RecipeRequest(folder / "base", branches, "ties", bench.own / "r.yml", settings, materialize=materialize)
    write_recipe(request)
    assert lint_recipe(request.output) == []


def test_a_strangers_recipe_of_whole_models(bench: Bench) -> None:
    folder = bench.dense
    text = f"""
merge_method: ties
base_model: {folder}/base
models:
  - model: {folder}/base
  - model: {folder}/sft
    parameters: {{density: [0.2, 0.5, 0.7], weight: 1.0}}
  - model: {folder}/preference
    parameters:
      density: 0.5
      weight: [{{filter: mlp, value: 0.5}}, {{filter: self_attn, value: 0.3}}, {{value: 1}}]
parameters: {{normalize: false, int8_mask: true}}
dtype: float32
out_dtype: float32
"""
    assert bench.lint(text) == []


def test_the_bases_name_among_the_models_of_linear_is_fine(bench: Bench, names: Callable[..., set[str]]) -> None:
    recipe = bench.recipe("linear")
    recipe["models"].append({"model": recipe["base_model"], "parameters": {"weight": 0.5}})
    assert names(recipe) == set()


def test_weights_under_normalize_on_deltas_that_overlap(bench: Bench, names: Callable[..., set[str]]) -> None:
    recipe = bench.recipe("ties", "dense", density=0.9, shared_normalize=True)
    recipe["models"][0]["parameters"]["weight"] = 0.5
    assert names(recipe) == set()


def test_a_factor_or_weight_of_nothing_for_some_tensors_is_meant(bench: Bench, names: Callable[..., set[str]]) -> None:
    """mergekit gives each tensor its own: only where all are zero is nothing merged."""
    assert names(bench.recipe("task_arithmetic", "dense", shared_lambda=[0, 1])) == set()
    head = [{"filter": "lm_head", "value": 0}, {"value": 1}]
    assert names(bench.recipe("ties", "dense", density=0.9, weight=head, shared_normalize=True)) == set()


def test_what_a_condition_leaves_out_may_stand_in_the_recipe_s_own_parameters(
    bench: Bench, names: Callable[..., set[str]]
) -> None:
    recipe = bench.recipe("ties", "dense", shared_density=0.5, shared_normalize=True)
    recipe["models"][0]["parameters"]["density"] = [{"filter": "mlp", "value": 0.3}]
    assert names(recipe) == set()


def test_nothing_is_fetched_to_be_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: fetched.append(name))
    recipe = bench.recipe()
    recipe["models"][0]["model"] = "someone/seven-billion"
    assert {finding.name for finding in bench.lint(recipe)} == {"not-checked"}
    assert fetched == []


def test_without_weights_nothing_is_said_of_them(bench: Bench) -> None:
    assert bench.lint(bench.recipe("sce") | {"models": _without_parameters(bench)}, read_weights=False) == []


def _without_parameters(bench: Bench) -> list[dict[str, object]]:
    return [{"model": model["model"]} for model in bench.recipe()["models"]]
