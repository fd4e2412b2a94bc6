"""What is scored in memory is what `axolotl paft merge` writes: the same tensors, bit for bit, and the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.candidates import Candidate, as_lm_eval
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.evaluation.scorer import Scorer
from paft_plugin.fusion.merge import open_fusion, write_fusion
from paft_plugin.fusion.recipe.render import two_branches
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from paft_plugin.search.bench import FusedModel
from paft_plugin.search.validation import open_goals
from tests.deltas.builders import make_adapter, make_base
from tests.evaluation.models import load

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"density": 0.3, "scale": 0.8}),
    ("ties", {"density": 0.6, "normalize": False, "weight_sft": 0.4, "weight_preference": 1.1}),
    ("dare_ties", {"density": 0.4}),
    ("dare_linear", {"density": 0.7, "weight_sft": 0.3}),
    ("task_arithmetic", {"weight_preference": 0.5}),
    ("linear", {}),
]
SEED = 5


@pytest.fixture(scope="module")
def model(world: Path) -> FusedModel:
    return FusedModel(world / "base", "float32", "cpu")


def merged(world: Path, folder: Path, method: str, preference: str = "preference", **options: Any) -> Path:
    """The recipe `<folder>/r.yml`, merged to `<folder>/model`."""
    recipe = folder / "r.yml"
    branches = two_branches(world / "sft", world / preference)
    write_recipe(RecipeRequest(world / "base", branches, method, recipe, RecipeSettings(**options)))
    write_fusion(open_fusion(recipe, SEED, "cpu"), folder / "model")
    return folder / "model"


@pytest.mark.parametrize(("method", "options"), SETTINGS)
def test_the_tensors_are_those_of_the_merge_on_disk(
    world: Path, model: FusedModel, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    """The models before this one (of the other parametrisations, in any order) leave no trace."""
    written = load_file(merged(world, tmp_path, method, **options) / "model.safetensors")
    model.become(tmp_path / "r.yml", SEED)
    here = model.model.state_dict()
    assert written.keys() <= here.keys()
    assert all(torch.equal(here[name], tensor) for name, tensor in written.items())


def test_so_are_the_scores(world: Path, model: FusedModel, tmp_path: Path) -> None:
    objectives = {"first": MeasureConfig(), "second": MeasureConfig()}
    scores = []
    for method, options in (SETTINGS[2], SETTINGS[4]):
        folder = merged(world, tmp_path / method, method, **options)
        model.become(tmp_path / method / "r.yml", SEED)
        here = Scorer(as_lm_eval(model.model, model.tokenizer, 8), open_goals(objectives, world / "tasks")[1]).score()
        there = Scorer(
            load(Candidate("merged", folder), batch_size=8), open_goals(objectives, world / "tasks")[1]
        ).score()
        assert here == there
        scores.append(here)
    assert scores[0] != scores[1]  # or the comparison would say nothing


def test_a_branch_that_is_a_whole_model(world: Path, model: FusedModel, tmp_path: Path) -> None:
    written = load_file(merged(world, tmp_path, "ties", preference="whole") / "model.safetensors")
    model.become(tmp_path / "r.yml", SEED)
    here = model.model.state_dict()
    assert all(torch.equal(here[name], tensor) for name, tensor in written.items())


def another(world: Path, folder: Path, **config: Any) -> Path:
    """A base like `make_base`'s with the tokenizer of the world, two adapters on it, and their merge."""
    base = make_base(folder / "base", **config)
    AutoTokenizer.from_pretrained(world / "base").save_pretrained(base)
    for seed, name in enumerate(("sft", "preference")):
        make_adapter(base, folder / name, seed=seed)
    return merged(folder, folder, "ties")


def test_tied_embeddings_are_one_tensor_under_two_names(world: Path, tmp_path: Path) -> None:
    folder = another(world, tmp_path, tie_word_embeddings=True)
    model = FusedModel(tmp_path / "base", "float32", "cpu")
    model.become(tmp_path / "r.yml", SEED)
    there = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, there[name]) for name, tensor in model.model.state_dict().items())


def test_a_bf16_base_is_scored_as_the_merged_model_will_be_rounded(world: Path, tmp_path: Path) -> None:
    folder = another(world, tmp_path, dtype=torch.bfloat16)
    model = FusedModel(tmp_path / "base", "float32", "cpu")
    model.become(tmp_path / "r.yml", SEED)
    written = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    here = model.model.state_dict()
    assert all(torch.equal(here[name], tensor.float()) for name, tensor in written.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, "has another name or place"),
        ({"num_hidden_layers": 1}, "merges no .*layers.1"),
        ({"intermediate_size": 40}, "merged to shape"),
    ],
)
def test_a_recipe_of_another_model_is_refused(
    world: Path, tmp_path: Path, config: dict[str, int], message: str
) -> None:
    """Weights of an earlier trial must not be scored as a part of this one."""
    another(world, tmp_path, **config)
    another(world, tmp_path / "mine")
    with pytest.raises(PaftError, match=message):
        FusedModel(tmp_path / "mine" / "base", "float32", "cpu").become(tmp_path / "r.yml", SEED)
