"""A recipe's text is its content, its parameters are deliberate, and nothing that was asked for is ignored."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.fusion.recipe.examples import ADAPTERS, FOLDER, examples
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.render import Recipe, build_recipe, merge_command, render_recipe, two_branches
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, request_problems, settle

WEIGHTED = [name for name, method in METHODS.items() if method.weight is not None]
SCALED = [name for name, method in METHODS.items() if method.scales]


def settled(adapters: bool = True, tokenizer_named: bool = False, **asked: Any) -> Recipe:
    """The recipe of settings (as the command line hands them over) and of what else is asked; all mistakes are raised."""
    given = {name: asked.pop(name) for name in RecipeSettings.model_fields if name in asked}
    given |= {name: [str(given[name])] for name in ("density", "weight") if name in given}
    settings, unread = RecipeSettings.read(given)
    sft, preference = (asked.pop(branch.name, branch.path) for branch in ADAPTERS.branches)
    branches = tuple(replace(branch, is_adapter=adapters) for branch in two_branches(sft, preference))
    request = replace(ADAPTERS, **{"branches": branches, "settings": settings, **asked})
    raise_if_any([*unread, *request_problems(request)])
    return settle(request, dtype="bfloat16", cache="0" * 16, tokenizer_named=tokenizer_named)


def parameters(recipe: Recipe, scope: int | None = None) -> dict[str, Any]:
    """Shared parameters, or those of the model with index `scope`."""
    content = build_recipe(recipe)
    found: dict[str, Any] = content["parameters"] if scope is None else content["models"][scope]["parameters"]
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adapters", [True, False])
def test_text_reads_back_as_the_content(method: str, adapters: bool) -> None:
    awkward = Path('/runs/it\'s a "dir": +x@y # 日本 {} é\\n')
    weights = {"weight_sft": 1e-7, "weight_preference": 3e21} if method in WEIGHTED else {}
    scale = {"scale": 1e-5} if method in SCALED else {}
    recipe = settled(adapters, method == "linear", method=method, sft=awkward, seed=7, **weights, **scale)
    assert yaml.safe_load(render_recipe(recipe)) == build_recipe(recipe)


def test_the_header_holds_the_command_once_and_a_shell_reads_it_back() -> None:
    recipe = settled(output=Path("/runs/a b/it's+x@y.yml"))
    lines = [line for line in render_recipe(recipe).splitlines() if line.startswith("# mergekit-yaml ")]
    assert [shlex.split(line.removeprefix("# ")) for line in lines] == [merge_command(recipe)]


def test_flags_are_those_needed() -> None:
    adapters = settled(seed=5)
    assert merge_command(adapters) == [
        *("mergekit-yaml", "/runs/recipe.yml", "/runs/recipe"),
        *(
            "--lora-merge-cache",
            "/runs/.lora-cache-0000000000000000",
            "--lora-merge-dtype",
            "float32",
            "--random-seed",
            "5",
        ),
    ]
    assert (adapters.merged, adapters.lora_cache) == (Path("/runs/recipe"), Path("/runs/.lora-cache-0000000000000000"))
    models = settled(adapters=False)
    assert not any("lora" in argument for argument in merge_command(models))
    assert (models.merged, models.lora_cache) == (Path("/runs/recipe"), None)


@pytest.mark.parametrize("method", METHODS)
def test_branches_are_merged_in_fp32_and_written_in_the_bases_dtype(method: str) -> None:
    content = build_recipe(settled(method=method))
    assert (content["dtype"], content["out_dtype"]) == ("float32", "bfloat16")
    base = {"deltas": {"path": "/models/Mistral-7B-v0.1"}, "models": None, "pair": {"path": "/models/Mistral-7B-v0.1"}}
    assert content.get("base_model", {}).get("model") == base[METHODS[method].layout]
    assert ("lora" in content.get("base_model", {})) == (METHODS[method].layout == "pair")


def test_ties_averages_as_published_until_a_weight_is_given() -> None:
    assert parameters(settled())["normalize"] is True
    assert parameters(settled(weight_sft=0.3))["normalize"] is False
    assert parameters(settled(weight_preference=1.0))["normalize"] is False
    assert parameters(settled(weight_sft=0.3, normalize=True))["normalize"] is True
    assert parameters(settled(normalize=False))["normalize"] is False
    assert [parameters(settled(), index)["weight"] for index in (0, 1)] == [1.0, 1.0]


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_dare_sums_and_rescales(method: str) -> None:
    assert parameters(settled(method=method)) == {"normalize": False, "rescale": True, "lambda": 1.0}
    assert parameters(settled(method=method, normalize=True))["normalize"] is True


def test_parameters_stand_in_the_scope_in_which_mergekit_reads_them() -> None:
    recipe = settled(density=0.4, weight_sft=0.7, scale=1.5)
    assert parameters(recipe, 0) == {"weight": 0.7, "density": 0.4}
    assert parameters(recipe, 1) == {"weight": 1.0, "density": 0.4}
    assert parameters(recipe) == {"normalize": False, "lambda": 1.5}


def test_every_parameter_has_its_reason() -> None:
    lines = render_recipe(settled(method="dare_ties")).splitlines()
    for key in ("normalize", "rescale", "lambda", "density", "dtype", "out_dtype"):
        first = next(index for index, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        assert lines[first - 1].strip().startswith("# "), key


def test_linear_expresses_a_scale_by_the_base_as_a_third_model() -> None:
    content = build_recipe(settled(method="linear", weight_sft=1.0, weight_preference=3.0, scale=0.5))
    assert [model["parameters"]["weight"] for model in content["models"]] == [0.125, 0.375, 0.5]
    assert content["models"][2]["model"] == {"model": {"path": "/models/Mistral-7B-v0.1"}}
    plain = build_recipe(settled(method="linear", weight_sft=1.0, weight_preference=3.0))
    assert [model["parameters"]["weight"] for model in plain["models"]] == [1.0, 3.0]


def test_a_density_for_each_branch_and_for_some_tensors() -> None:
    recipe = settled(
        density=0.4, density_preference=0.6, filter=("mlp:density-sft=0.1", "embed:density=0.05", "mlp:weight_sft=2")
    )
    assert parameters(recipe, 0) == {
        "weight": [{"filter": "mlp", "value": 2.0}, {"value": 1.0}],
        "density": [{"filter": "mlp", "value": 0.1}, {"filter": "embed", "value": 0.05}, {"value": 0.4}],
    }
    assert parameters(recipe, 1)["density"] == [{"filter": "embed", "value": 0.05}, {"value": 0.6}]
    assert parameters(recipe)["normalize"] is False  # a weight was given
    assert yaml.safe_load(render_recipe(recipe)) == build_recipe(recipe)


@pytest.mark.parametrize("method", METHODS)
def test_extras_stand_where_mergekit_reads_them(method: str) -> None:
    recipe = settled(method=method)
    for extra in METHODS[method].extras:
        places = [parameters(recipe, 0), parameters(recipe, 1)] if extra.per_branch else [parameters(recipe)]
        assert [place[extra.name] for place in places] == [extra.default] * len(places)
    given = {extra.name: not extra.default for extra in METHODS[method].extras if isinstance(extra.default, bool)}
    chosen = {one.name: one.value for one in settled(method=method, extras=given).parameters}
    assert chosen.items() >= given.items()


def test_multislerp_writes_a_scale_into_weights_that_are_not_normalised() -> None:
    recipe = settled(method="multislerp", weight_sft=1.0, weight_preference=3.0, scale=0.5)
    assert parameters(recipe)["normalize_weights"] is False
    assert [parameters(recipe, index)["weight"] for index in (0, 1)] == [0.125, 0.375]


NOT_TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("karcher", {"density_sft": 0.5}),
    ("linear", {"filter": ("mlp:density=0.5",)}),
    ("sce", {"weight_sft": 0.5}),
    ("sce", {"filter": ("mlp:weight-sft=0.5",)}),
    ("slerp", {"weight_preference": 0.5}),
    ("nuslerp", {"scale": 0.5}),
    ("ram", {"normalize": True}),
    ("ties", {"extras": {"epsilon": 0.1}}),
    ("ties", {"extras": {"epsilno": 0.1}}),
    ("dare_ties", {"extras": {"gamma": 0.1}}),
    ("linear", {"density": 0.5}),
    ("task_arithmetic", {"density": 0.5}),
    ("linear", {"normalize": True}),
    ("linear", {"normalize": False}),
]
OUT_OF_RANGE: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"density": 0.0}),
    ("ties", {"density_preference": 2.0}),
    ("della", {"density": 0.95}),
    ("della_linear", {"density": 0.3, "extras": {"epsilon": 0.3}}),
    ("della", {"filter": ("mlp:density=0.05",)}),
    ("breadcrumbs", {"density": 1.0, "extras": {"gamma": 0.01}}),
    ("breadcrumbs", {"extras": {"gamma": 1.5}}),
    ("breadcrumbs", {"extras": {"gamma": math.nan}}),
    ("slerp", {"extras": {"t": 1.1}}),
    ("karcher", {"extras": {"tol": 0.0}}),
    ("karcher", {"extras": {"max_iter": 0}}),
    ("ram", {"extras": {"epsilon": math.inf}}),
    ("linear", {"scale": 0.5, "filter": ("mlp:weight-sft=2",)}),
    ("ties", {"filter": ("mlp",)}),
    ("ties", {"filter": ("mlp:density-sft=much",)}),
    ("ties", {"filter": ("mlp:desnity=0.1",)}),
    ("ties", {"filter": (":density=0.1",)}),
    ("ties", {"filter": ("mlp:density=0.1", "mlp.down_proj:density=0.2")}),
    ("nearswap", {}),
    ("ties", {"materialize": True, "output": Path("/runs/materialized.yml")}),
    ("ties", {"density": 1.1}),
    ("ties", {"density": -0.1}),
    ("ties", {"density": math.nan}),
    ("dare_ties", {"density": 1.0}),
    ("dare_linear", {"density": 1.0}),
    ("ties", {"weight_sft": math.nan}),
    ("ties", {"weight_preference": math.inf}),
    ("ties", {"weight_sft": 0.0, "weight_preference": 0.0}),
    ("linear", {"weight_sft": 1.0, "weight_preference": -1.0}),
    ("task_arithmetic", {"weight_sft": 1.0, "weight_preference": -1.0, "normalize": True}),
    ("ties", {"scale": 0.0}),
    ("ties", {"scale": -1.0}),
    ("ties", {"scale": math.inf}),
    ("ties", {"seed": -1}),
    ("ties", {"seed": 2**32}),
    ("no_such", {}),
    ("ties", {"sft": Path("/runs/dpo")}),
    ("ties", {"preference": Path("/models/Mistral-7B-v0.1")}),
    ("ties", {"output": Path("/runs/dpo.yml")}),
    ("ties", {"merged": Path("/models/Mistral-7B-v0.1")}),
    ("ties", {"sft": Path("/runs/new\nline")}),
]


@pytest.mark.parametrize(("method", "asked"), NOT_TAKEN + OUT_OF_RANGE)
def test_what_a_method_does_not_take_is_refused(method: str, asked: dict[str, Any]) -> None:
    with pytest.raises(PaftError) as error:
        settled(method=method, **asked)
    assert len(error.value.problems) == 1


def test_all_wrong_options_are_said_at_once() -> None:
    with pytest.raises(PaftError) as error:
        settled(method="linear", density=0.5, normalize=True, scale=-1.0, seed=-1)
    assert len(error.value.problems) == 4


@pytest.mark.parametrize(("output", "merged"), [("a.yml", "a"), ("a.b.yaml", "a.b"), ("recipe", "recipe-merged")])
def test_the_merged_model_lies_beside_its_recipe(output: str, merged: str) -> None:
    assert settled(output=Path("/out") / output).merged == Path("/out") / merged


def test_a_request_need_not_say_more_than_paths_and_method() -> None:
    sft, preference = two_branches(Path("/s"), Path("/p"))
    request = RecipeRequest(Path("/b"), (replace(sft, is_adapter=True), preference), "ties", Path("/r.yml"))
    recipe = settle(request, dtype="float16", cache="f")
    models = [model["model"] for model in build_recipe(recipe)["models"]]
    assert models == [{"model": {"path": "/b"}, "lora": {"path": "/s"}}, {"model": {"path": "/p"}}]


def test_shipped_recipes_are_what_the_generator_writes() -> None:
    shipped = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yml")}
    assert shipped == examples(), "run `python -m paft_plugin.fusion.recipe.examples`"
    assert {f"paft-{method}.yml" for method in METHODS} <= set(shipped)
