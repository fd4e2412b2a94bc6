"""TIES with the trim of its paper: the same as a few lines of torch give on the concatenated deltas, equal entries included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge import blocks, open_fusion
from paft_plugin.fusion.recipe.render import RecipeBranch
from paft_plugin.fusion.recipe.setting_problems import setting_problems
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from tests.cli import call
from tests.deltas.builders import merged_by_peft, weights
from tests.fusion.merge.tools import ours
from tests.fusion.mergekit_runs import run_mergekit
from tests.fusion.world import World

DENSITY = 0.3


def recipe(world: World, folder: Path, *names: str, **settings: Any) -> Path:
    branches = tuple(RecipeBranch(name, "sft", world[name]) for name in names)
    given = RecipeSettings(**{"trim": "global", "density": DENSITY, **settings})
    return write_recipe(RecipeRequest(world["base"], branches, "ties", folder / "r.yml", given)).file


def trained(world: World, name: str) -> dict[str, Tensor]:
    if (world[name] / "adapter_config.json").is_file():
        return merged_by_peft(world["base"], world[name])
    return weights(world[name])


def by_hand(world: World, order: list[str], names: tuple[str, ...]) -> Tensor:
    """TIES (arXiv 2306.01708, algorithm 1) on whole vectors: trim, elect, mean of those that agree."""
    base = torch.cat([weights(world["base"])[name].flatten() for name in order])
    deltas = torch.stack([torch.cat([trained(world, name)[key].flatten() for key in order]) for name in names]) - base
    kept = max(1, int(DENSITY * base.numel()))
    for delta in deltas:
        delta[torch.sort(delta.abs(), descending=True, stable=True).indices[kept:]] = 0
    elected = torch.where(deltas.sum(dim=0) >= 0, 1, -1)
    agree = deltas.sign() == elected
    return base + (deltas * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


@pytest.mark.parametrize(
    ("names", "size"),
    [(("sft", "dpo"), 64), (("sft-full", "dpo-full"), blocks.BLOCK), (("sft", "dpo", "sft-full", "dpo-full"), 64)],
)
def test_it_is_what_torch_gives_on_the_concatenated_deltas(
    world: World, tmp_path: Path, names: tuple[str, ...], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    merged = ours(recipe(world, tmp_path, *names))
    expected = by_hand(world, list(merged), names)
    torch.testing.assert_close(torch.cat([one.flatten() for one in merged.values()]), expected, rtol=0, atol=3e-7)


def test_of_equal_entries_at_the_threshold_exactly_so_many_are_kept_as_are_wanted(world: World, tmp_path: Path) -> None:
    base = weights(world["base"])
    grid = World(tmp_path)
    for name, seed in (("one", 1), ("two", 2)):
        generator = torch.Generator().manual_seed(seed)
        steps = {key: torch.randint(-3, 4, tensor.shape, generator=generator).float() for key, tensor in base.items()}
        (tmp_path / name).mkdir()
        save_file(steps, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base").mkdir()
    zeros = {key: torch.zeros_like(tensor) for key, tensor in base.items()}
    save_file(zeros, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    for name in ("base", "one", "two"):
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_text((world["base"] / file).read_text())
    merged = ours(recipe(grid, tmp_path, "one", "two"))
    expected = by_hand(grid, list(merged), ("one", "two"))
    assert torch.equal(torch.cat([one.flatten() for one in merged.values()]), expected)


def test_the_recipe_does_not_pretend(world: World, tmp_path: Path) -> None:
    file = recipe(world, tmp_path, "sft-full", "dpo-full")
    text = file.read_text()
    assert "merge_method: ties_global" in text
    assert "Plain mergekit-yaml has no such method" in text
    assert "# mergekit-yaml" not in text
    with pytest.raises(RuntimeError, match="Unimplemented merge method ties_global"):
        _as_plain(["mergekit-yaml", str(file), str(tmp_path / "out")])


def _as_plain(command: list[str]) -> None:
    """mergekit without what we entered into its registry."""
    from mergekit.merge_methods import registry

    own = registry._METHODS.pop("ties_global")
    try:
        run_mergekit(command)
    finally:
        registry._METHODS["ties_global"] = own


def test_each_command_says_which_trim_it_is(world: World, tmp_path: Path) -> None:
    branches = ("--base", world["base"], "--sft", world["sft"], "--preference", world["dpo"], "--method", "ties")
    for trim, said in (
        ("tensor", "ties trims each tensor by itself"),
        ("global", "ties_global trims each whole delta"),
    ):
        file = tmp_path / f"{trim}.yml"
        assert said in call("recipe", *branches, "--trim", trim, "--output", file)
        assert said in call("lint", file)
        assert said in call("merge", file, tmp_path / trim, "--quiet")
    assert "axolotl paft merge" in (tmp_path / "global.yml").read_text()


def test_an_adapter_of_it_is_the_same_delta(world: World, tmp_path: Path) -> None:
    file = recipe(world, tmp_path, "sft", "dpo")
    call("merge", file, tmp_path / "adapter", "--adapter", "--rank", 64, "--max-error", 1e-3, "--quiet")
    expected = ours(file)
    for name, tensor in merged_by_peft(world["base"], tmp_path / "adapter").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)


def test_what_cannot_be_trimmed_together_is_refused(world: World, tmp_path: Path) -> None:
    problems = setting_problems("ties", RecipeSettings(trim="global", filter=["mlp:density=0.1"]))
    assert len(problems) == 1
    (problem,) = setting_problems("dare_ties", RecipeSettings(trim="global"))
    assert "--trim: dare_ties" in problem
    file = recipe(world, tmp_path, "sft", "dpo")
    text = file.read_text()
    for change, said in (
        (("dtype: float32", "dtype: bfloat16"), "dtype: float32"),
        (("density: 0.3", "density: [0.1, 0.5]"), "several densities"),
    ):
        file.write_text(text.replace(*change, 1))
        with pytest.raises(PaftError, match=said):
            dict(open_fusion(file, device="cpu").tensors())
