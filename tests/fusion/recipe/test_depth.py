"""Weights that are linear in depth (LiNeS, arXiv 2410.17146): every layer's factor by hand, and what stands in no layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paft_plugin.fusion.recipe.render import build_recipe, two_branches
from paft_plugin.fusion.recipe.setting_problems import setting_problems
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from tests.deltas.builders import make_base, make_model, make_tokenizer, weights
from tests.fusion.merge.tools import by_mergekit, ours

LAYERS = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole models on a base with three layers and a head of its own."""
    folder = tmp_path_factory.mktemp("depth")
    base = make_base(folder / "base", num_hidden_layers=LAYERS)
    make_tokenizer(base)
    for seed, name in enumerate(("sft", "preference"), start=1):
        make_tokenizer(make_model(base, folder / name, seed=seed))
    return folder


def recipe(pair: Path, folder: Path, method: str, **settings: Any) -> RecipeRequest:
    branches = two_branches(pair / "sft", pair / "preference")
    return RecipeRequest(pair / "base", branches, method, folder / "r.yml", RecipeSettings(**settings))


def factor(name: str, first: float, last: float) -> float:
    """Of one tensor, as LiNeS has it: λ_l = α + β·(l − 1)/(L − 1)."""
    if ".layers." in name:
        return first + (last - first) * int(name.split(".layers.")[1].split(".")[0]) / (LAYERS - 1)
    return first if "embed" in name else last


def by_hand(pair: Path, sft: tuple[float, float], preference: tuple[float, float]) -> dict[str, Tensor]:
    base, one, other = (weights(pair / name) for name in ("base", "sft", "preference"))
    return {
        name: tensor + factor(name, *sft) * (one[name] - tensor) + factor(name, *preference) * (other[name] - tensor)
        for name, tensor in base.items()
    }


@pytest.mark.parametrize(
    ("method", "settings", "sft", "preference"),
    [
        ("task_arithmetic", {"depth": (0.5, 1.5)}, (0.5, 1.5), (0.5, 1.5)),
        ("task_arithmetic", {"depth_sft": (2, 0), "weight_sft": 0.4, "scale": 0.5}, (0.4, 0.0), (0.5, 0.5)),
        ("linear", {"depth": {"preference": (0.2, 1.0)}}, (0.5, 0.5), (0.1, 0.5)),
        ("linear", {"depth": (0, 1), "weight_sft": 3.0, "weight_preference": 1.0, "scale": 2}, (0, 1.5), (0, 0.5)),
    ],
)
def test_each_layer_has_the_factor_that_it_has_by_hand(
    pair: Path, tmp_path: Path, method: str, settings: dict[str, Any], sft: Any, preference: Any
) -> None:
    file = write_recipe(recipe(pair, tmp_path, method, **settings)).file
    merged = ours(file)
    for name, tensor in by_hand(pair, sft, preference).items():
        # Where linear names a tokenizer, the vocabulary's padding rows go.
        torch.testing.assert_close(merged[name], tensor[: len(merged[name])], atol=1e-6, rtol=0, msg=name)
    assert {"lm_head.weight", "model.norm.weight"} <= set(merged)


def test_mergekit_says_the_same(pair: Path, tmp_path: Path) -> None:
    file = write_recipe(recipe(pair, tmp_path, "ties", depth=(0.5, 1.5), density=0.6)).file
    plain, merged = by_mergekit(file, tmp_path), ours(file)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged.items())


def test_no_depth_is_what_it_always_was(pair: Path, tmp_path: Path) -> None:
    plain = write_recipe(recipe(pair, tmp_path, "task_arithmetic"))
    same = write_recipe(recipe(pair, tmp_path, "task_arithmetic", depth=(1, 1)))
    assert build_recipe(plain) == build_recipe(same)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("slerp", {"depth": (0, 1)}, "--depth: slerp has no weights"),
        ("nuslerp", {"depth": (0, 1)}, "--depth: nuslerp has no weights"),
        ("ties", {"depth": (-1, 1)}, "--depth -1.0: must be a finite number from 0 on"),
        ("ties", {"depth": (0, 0)}, "every weight is 0"),
        ("linear", {"depth": (0, 1), "filter": ["mlp:weight-sft=2"]}, "--depth and --filter"),
    ],
)
def test_a_depth_that_cannot_be_is_said(method: str, settings: dict[str, Any], said: str) -> None:
    (problem,) = setting_problems(method, RecipeSettings(**settings))
    assert said in problem
