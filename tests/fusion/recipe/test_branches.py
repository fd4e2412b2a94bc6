"""Any number of branches: two say what they always said, more are merged alike, and what is wrong of any is said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.setting_problems import setting_problems
from paft_plugin.fusion.recipe.settings import BranchName, RecipeSettings
from tests.cli import invoke
from tests.deltas.builders import make_adapter, make_base, merged_by_peft, weights
from tests.fusion.merge.tools import ours
from tests.fusion.world import World

THREE = (BranchName("math", "sft"), BranchName("code", "sft"), BranchName("taste", "preference"))


def written(world: World, tmp_path: Path, *options: str | Path) -> dict[str, Any]:
    """The content of the recipe that a call writes."""
    file = tmp_path / "r.yml"
    result = invoke("recipe", "--base", world["base"], *options, "--output", file)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def three(world: World, **more: str) -> list[str]:
    folders = {"math": "sft", "code": "sft-full", "taste": "dpo"}
    roles = {"taste": ",role=preference"}
    return [
        word
        for name, folder in folders.items()
        for word in ("--branch", f"{name}={world[folder]}{roles.get(name, '')}{more.get(name, '')}")
    ]


def test_two_named_branches_are_the_short_form_byte_by_byte(world: World, tmp_path: Path) -> None:
    short = ("--sft", world["sft"], "--preference", world["dpo"])
    long = ("--branch", f"sft={world['sft']}", "--branch", f"preference={world['dpo']}")
    texts = []
    for branches in (short, long):
        written(world, tmp_path, *branches, "--method", "ties", "--density-sft", "0.3", "--weight-preference", "0.7")
        texts.append((tmp_path / "r.yml").read_bytes())
    assert texts[0] == texts[1]


def test_a_branch_s_own_value_counts_before_its_role_s_and_that_before_the_one_for_all(
    world: World, tmp_path: Path
) -> None:
    options = ["--method", "ties", "--density", "0.5", "--density-sft", "0.4", "--filter", "mlp:density-code=0.1"]
    content = written(world, tmp_path, *three(world, math=",density=0.3,weight=2"), *options)
    assert [model["parameters"]["density"] for model in content["models"]] == [
        0.3,
        [{"filter": "mlp", "value": 0.1}, {"value": 0.4}],
        0.5,
    ]
    assert [model["parameters"]["weight"] for model in content["models"]] == [2.0, 1.0, 1.0]
    head = (tmp_path / "r.yml").read_text()
    assert "one base model, three branches trained" in head
    assert f"# math:       {world['sft']} (adapter, sft)" in head
    assert f"# taste:      {world['dpo']} (adapter, preference)" in head


def test_settings_of_branches_come_back_from_the_options_that_they_are_written_as(world: World, tmp_path: Path) -> None:
    settings = RecipeSettings(density={"math": 0.3, "*": 0.6}, weight={"code": 2.0}, density_preference=0.5)
    content = written(world, tmp_path, *three(world), "--method", "ties", *settings.options())
    assert [model["parameters"] for model in content["models"]] == [
        {"weight": 1.0, "density": 0.3},
        {"weight": 2.0, "density": 0.6},
        {"weight": 1.0, "density": 0.5},
    ]


def test_settings_without_a_branch_say_nothing_of_it() -> None:
    settings = RecipeSettings(
        density={"math": 0.3, "code": 0.1},
        weight={"taste": 2.0},
        weight_preference=0.5,
        filter=["mlp:density-taste=0.1", "mlp:weight-code=3", "attn:weight=2"],
    )
    assert setting_problems("ties", settings, THREE) == []
    rest = settings.only(THREE[:2])
    assert setting_problems("ties", rest, THREE[:2]) == []
    assert rest == RecipeSettings(density={"math": 0.3, "code": 0.1}, filter=["mlp:weight-code=3", "attn:weight=2"])
    assert settings.only(THREE) == settings


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_how_many_branches_it_takes(method: str) -> None:
    from mergekit.merge_methods import get

    contract, layout = get(method).spec.contract, METHODS[method].layout
    base = 1 if layout == "deltas" else 0
    least = max(contract.min_inputs - base, contract.min_non_base or 1)
    most = [number for number in (contract.max_inputs, contract.max_non_base) if number is not None]
    assert (METHODS[method].least, METHODS[method].most) == (least, most[0] if most else None)


def test_three_branches_are_fused_in_one_go(world: World, tmp_path: Path) -> None:
    options = [*three(world), "--method", "ties", "--depth", "taste=0.5:1", "--quiet"]
    result = invoke("fuse", tmp_path / "out", "--base", world["base"], *options)
    assert result.exit_code == 0, result.output
    assert set(weights(tmp_path / "out")) == set(weights(world["base"]))


def test_an_adapter_of_three_adapters_is_exact_and_has_their_ranks_together(world: World, tmp_path: Path) -> None:
    third = make_adapter(world["base"], tmp_path / "third", seed=7, r=3)
    file, out = tmp_path / "r.yml", tmp_path / "adapter"
    options = [f"--branch=math={world['sft']}", f"--branch=code={world['dpo']},weight=0.5", f"--branch=b={third}"]
    for words in (
        ("recipe", "--base", world["base"], *options, "--method", "task_arithmetic", "--output", file),
        ("merge", file, out, "--adapter", "--quiet"),
    ):
        result = invoke(*map(str, words))
        assert result.exit_code == 0, result.output
    ranks = [
        json.loads((folder / "adapter_config.json").read_text())["r"] for folder in (world["sft"], world["dpo"], third)
    ]
    assert json.loads((out / "adapter_config.json").read_text())["r"] == sum(ranks)
    expected = ours(file)
    for name, tensor in merged_by_peft(world["base"], out).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)


def test_three_adapters_as_whole_models_are_named_after_their_branches(world: World, tmp_path: Path) -> None:
    options = [f"--branch=math={world['sft']}", f"--branch=code={world['dpo']}", f"--branch=b={world['sft-full']}"]
    content = written(world, tmp_path, *options, "--method", "linear", "--materialize")
    names = [Path(model["model"]["model"]["path"]).name.rpartition("-")[0] for model in content["models"]]
    assert names == ["math", "code", "sft"]


@pytest.mark.parametrize("method", METHODS)
def test_three_branches_by_every_method_that_takes_them(world: World, tmp_path: Path, method: str) -> None:
    result = invoke(
        "recipe", "--base", world["base"], *three(world), "--method", method, "--output", tmp_path / "r.yml"
    )
    if METHODS[method].most is not None:
        assert result.exit_code == 2
        assert f"{method}: takes exactly 2 branches, not 3" in result.output
        return
    assert result.exit_code == 0, result.output
    base, merged = weights(world["base"]), ours(tmp_path / "r.yml")
    assert any(not torch.equal(tensor[: len(merged[name])], merged[name]) for name, tensor in base.items())
    assert all(bool(tensor.isfinite().all()) for tensor in merged.values())


BAD: list[tuple[list[str], str]] = [
    (["--branch", "math={sft}", "--branch", "math={dpo}"], "2 branches have this name"),
    (["--branch", "a={sft}", "--branch", "b={sft}"], "--branch a and --branch b are the same folder"),
    (["--branch", "preference={sft},role=sft", "--branch", "b={dpo}"], "has the role sft and the name of the other"),
    (["--branch", "math={sft}", "--branch", "b={dpo}", "--weight", "mtah=0.5"], "Did you mean math?"),
    (
        ["--branch", "math={sft}", "--branch", "b={dpo}", "--density-preference", "0.5"],
        "no branch has the role preference",
    ),
    (["--branch", "math={sft}", "--filter", "mlp:density-maht=0.5"], "Did you mean math?"),
    (["--branch", "math={sft},wieght=0.5"], "Did you mean weight?"),
    (["--branch", "math={sft},role=sfx"], "Did you mean sft?"),
    (["--branch", "math={sft},weight=much"], "--weight math=much: cannot be read"),
    (["--branch", "math={sft},weight=0.5", "--weight", "math=1"], "--weight math: given 2 times"),
    (["--branch", "a b={sft}"], "use letters, digits"),
    (["--branch", "{sft}"], "not of the form NAME=DIR"),
    (["--sft", "{sft}"], "Missing --preference"),
    ([], "No branch is given"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_branches_are_one_line(world: World, tmp_path: Path, options: list[str], said: str) -> None:
    filled = [option.format(sft=world["sft"], dpo=world["dpo"]) for option in options]
    result = invoke("recipe", "--base", world["base"], *filled, "--method", "ties", "--output", tmp_path / "r.yml")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "r.yml").exists()


def test_nine_unreadable_folders_are_all_said_at_once(world: World, tmp_path: Path) -> None:
    options = [word for number in range(9) for word in ("--branch", f"b{number}={tmp_path / f'gone-{number}'}")]
    result = invoke("recipe", "--base", world["base"], *options, "--method", "ties", "--output", tmp_path / "r.yml")
    lines = result.stderr.splitlines()
    assert len(lines) == 9
    assert all(f"gone-{number}: no such folder" in line for number, line in enumerate(lines))


def test_a_branch_of_another_base_is_told_among_those_that_fit(world: World, tmp_path: Path) -> None:
    other = make_base(tmp_path / "elsewhere", seed=9)
    stray = make_adapter(other, tmp_path / "stray", seed=1)
    options = [*three(world), "--branch", f"stray={stray}", "--method", "ties", "--output", tmp_path / "r.yml"]
    result = invoke("recipe", "--base", world["base"], *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"{stray}: trained on {other}, not on {world['base']}" in line


def test_a_folder_may_be_named_like_a_branch_with_keys(world: World, tmp_path: Path) -> None:
    awkward = tmp_path / "a=b,weight=2"
    awkward.symlink_to(world["sft"])
    content = written(
        world, tmp_path, "--branch", f"math={awkward}", "--branch", f"b={world['dpo']}", "--method", "ties"
    )
    assert [model["parameters"]["weight"] for model in content["models"]] == [1.0, 1.0]
