"""`axolotl paft recipe`: a good call writes a recipe, a bad one says everything at once and writes nothing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from click.testing import Result

from paft_plugin.commands.recipe import recipe
from paft_plugin.fusion.recipe.settings import SETTINGS, RecipeSettings
from tests.cli import invoke
from tests.fusion.world import World

call = partial(invoke, "recipe")


def branches(world: World, sft: str = "sft", preference: str = "dpo") -> list[str | Path]:
    return ["--base", world["base"], "--sft", world[sft], "--preference", world[preference]]


def errors(result: Result) -> list[str]:
    """The messages of a call that failed as it should: exit code 2, one line each, no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in lines), result.output
    assert "Traceback" not in result.output
    return lines


def test_a_recipe_is_written_and_its_command_shown(world: World, tmp_path: Path) -> None:
    file = tmp_path / "new" / "ties.yml"
    result = call(*branches(world, "sft-full"), "--method", "ties", "--density", "0.4", "--seed", "3", "--output", file)
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(file.read_text())
    assert content["models"][0]["parameters"] == {"weight": 1.0, "density": 0.4}
    command = result.stdout.splitlines()[-1]
    assert f"# {command}" in file.read_text().splitlines()
    assert shlex.split(command)[-2:] == ["--random-seed", "3"]
    assert f"Warning: {world['sft-full']} has no paft.json" in result.stderr
    assert "it was trained with a chat template of its own" in result.stderr


def test_paths_may_be_relative(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    result = call("--base", "base", "--sft", "sft", "--preference", "dpo", "--method", "linear", "--output", "here.yml")
    assert result.exit_code == 0, result.output
    references = [model["model"] for model in yaml.safe_load(Path("here.yml").read_text())["models"]]
    assert references[0] == {
        "model": {"path": str(world["base"].resolve())},
        "lora": {"path": str(world["sft"].resolve())},
    }


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_can_be_chosen_both_ways(world: World, tmp_path: Path, normalize: bool) -> None:
    option = "--normalize" if normalize else "--no-normalize"
    call(*branches(world), "--method", "dare_ties", option, "--output", tmp_path / "r.yml")
    assert yaml.safe_load((tmp_path / "r.yml").read_text())["parameters"]["normalize"] is normalize


def test_every_setting_is_an_option_that_gives_it_back() -> None:
    values: dict[Any, Any] = {
        float | None: 0.25,
        bool | None: False,
        Literal["tensor", "global"] | None: "global",
        float | dict[str, float] | None: {"*": 0.5, "b": 1.0},
        tuple[float, float] | None: (0.5, 1.5),
        tuple[float, float] | dict[str, tuple[float, float]] | None: {"b": (0.0, 2.0)},
    }
    given = {name: values[RecipeSettings.model_fields[name].annotation] for name in SETTINGS}
    filters = ["mlp:density-sft=0.1", "o_proj:weight-preference=2e-07"]
    settings = RecipeSettings(**given, filter=filters, extras={"rescale": False, "max_iter": 3, "tol": 1e-9})
    folders = ["--base", "b", "--sft", "s", "--preference", "p", "--method", "ties", "--output", "o"]
    parsed = recipe.make_context("recipe", [*folders, *settings.options()]).params
    read, problems = RecipeSettings.read({name: parsed[name] for name in (*SETTINGS, "filter")})
    assert problems == []
    assert read == settings.model_copy(update={"extras": {}})
    assert {name: parsed[name] for name in settings.extras} == settings.extras


def test_a_filter_that_cannot_be_read_is_said_with_all_else(world: World, tmp_path: Path) -> None:
    options = ["--method", "ties", "--filter", "mlp", "--density", "2", "--output", tmp_path / "r.yml"]
    lines = errors(call(*branches(world), *options))
    assert [line.partition(":")[2].split()[0] for line in lines] == ["--filter", "--density"]
    assert not (tmp_path / "r.yml").exists()


def test_everything_wrong_is_said_at_once_and_nothing_is_written(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text((world["sft"] / "adapter_config.json").read_text())
    (broken / "adapter_model.safetensors").write_bytes(b"short")
    file = tmp_path / "r.yml"
    call_on = ["--base", world["base"], "--sft", broken, "--preference", tmp_path / "nowhere"]
    lines = errors(call(*call_on, "--method", "linear", "--density", "0.5", "--output", file))
    assert len(lines) == 3
    assert "--density" in lines[0]
    assert f"{broken / 'adapter_model.safetensors'}: truncated or corrupt" in lines[1]
    assert f"{tmp_path / 'nowhere'}: no such folder" in lines[2]
    assert not file.exists()


def test_a_wrong_base_is_said_once(world: World, tmp_path: Path) -> None:
    options = ["--sft", world["sft"], "--preference", world["dpo"], "--method", "ties", "--output", tmp_path / "r.yml"]
    (line,) = errors(call("--base", tmp_path / "nowhere", *options))
    assert f"{tmp_path / 'nowhere'}: no such folder" in line


def test_an_adapter_that_diverged_is_refused(world: World, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    branch = shutil.copytree(world["sft"], tmp_path / "diverged")
    tensors = load_file(branch / "adapter_model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, branch / "adapter_model.safetensors")
    options = ["--base", world["base"], "--sft", branch, "--preference", world["dpo"], "--method", "ties"]
    (line,) = errors(call(*options, "--output", tmp_path / "r.yml"))
    assert "NaN or infinity" in line


def test_a_folder_that_cannot_be_written_is_one_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (line,) = errors(call(*branches(world), "--method", "ties", "--output", tmp_path / "file" / "r.yml"))
    assert str(tmp_path / "file") in line


def test_an_existing_folder_as_output_is_refused(world: World, tmp_path: Path) -> None:
    (line,) = errors(call(*branches(world), "--method", "ties", "--output", tmp_path))
    assert "a folder" in line


def test_a_model_branch_without_a_tokenizer_is_refused_where_mergekit_may_look_there(
    world: World, tmp_path: Path
) -> None:
    import shutil

    bare = shutil.copytree(world["sft-full"], tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    options = ["--base", world["base"], "--sft", bare, "--preference", world["dpo"], "--output", tmp_path / "r.yml"]
    (line,) = errors(call(*options, "--method", "linear"))
    assert "Copy the base's tokenizer files" in line
    assert call(*options, "--method", "ties").exit_code == 0


def test_help_loads_neither_torch_nor_mergekit() -> None:
    code = (
        "import sys; from paft_plugin.cli import paft; from click.testing import CliRunner; "
        "assert CliRunner().invoke(paft, ['recipe', '--help']).exit_code == 0; "
        "heavy = {'torch', 'transformers', 'mergekit', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
