"""`axolotl paft fuse`: what recipe, lint and merge do one after another, in one go and with one look at the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from paft_plugin.fusion.lint import linter
from paft_plugin.fusion.lint.findings import LintFile
from tests.cli import call
from tests.fusion.world import World

MINE = """\
base_model: {{model: {{path: "{base}"}}}}
merge_method: task_arithmetic
{more}
models:
  - model: {{model: {{path: "{base}"}}, lora: {{path: "{sft}"}}}}
    parameters: {{weight: 1.0}}
dtype: float32
"""


def branches(world: World) -> tuple[object, ...]:
    return ("--base", world["base"], "--sft", world["sft"], "--preference", world["dpo"])


def weights_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors*"))}


def names(folder: Path) -> Iterator[str]:
    yield from sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("settings", [("ties", "--density", "0.5"), ("dare_ties", "--filter", "mlp:density=0.3")])
def test_it_does_what_the_three_commands_do(
    world: World, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    look = linter.lint_recipe
    monkeypatch.setattr(linter, "lint_recipe", lambda file, **more: [looked.append(file), look(file, **more)][1])
    method, *more = settings
    options = (*branches(world), "--method", method, *more, "--seed", 7)
    file, one, other = tmp_path / "by hand.yml", tmp_path / "one", tmp_path / "by hand"
    call("fuse", one, *options, "--quiet")
    assert looked == [one / "recipe.yml"], "the linter looks once"

    call("recipe", *options, "--output", file)
    call("lint", file, "--json", tmp_path / "lint.json")
    call("merge", file, other, "--seed", 7, "--quiet")
    assert weights_of(one) == weights_of(other)
    assert set(names(one)) == {*names(other), "recipe.yml", "lint.json"}
    assert not list(tmp_path.glob(".*"))
    written = (one / "recipe.yml").read_text()
    assert written == (one / "mergekit_config.yml").read_text()
    assert (
        written.replace(str(one / "recipe.yml"), str(file)).replace(str(one), str(other)).splitlines()[7:]
        == (file.read_text().splitlines()[7:])
    )
    ours, theirs = (LintFile.read(place / "lint.json").recipes[0].findings for place in (one, tmp_path))
    assert [finding.code for finding in ours] == [finding.code for finding in theirs]


def test_a_recipe_of_one_s_own_goes_the_same_way(world: World, tmp_path: Path) -> None:
    file, out = tmp_path / "mine.yml", tmp_path / "out"
    file.write_text(MINE.format(base=world["base"], sft=world["sft"], more=""))
    call("fuse", out, "--recipe", file, "--quiet")
    assert (out / "recipe.yml").read_text() == file.read_text()
    assert (out / "lint.json").is_file()
    assert weights_of(out)


def test_a_recipe_is_merged_by_the_seed_that_it_was_written_with(world: World, tmp_path: Path) -> None:
    """Otherwise what was scored and what is made of its recipe later would drop other entries, and nothing would say so."""
    file = tmp_path / "dare.yml"
    call("recipe", *branches(world), "--method", "dare_ties", "--seed", 7, "--output", file)
    call("merge", file, tmp_path / "as written", "--quiet")
    call("fuse", tmp_path / "fused", "--recipe", file, "--quiet")
    call("merge", file, tmp_path / "7", "--seed", 7, "--quiet")
    call("merge", file, tmp_path / "0", "--seed", 0, "--quiet")
    assert weights_of(tmp_path / "as written") == weights_of(tmp_path / "fused") == weights_of(tmp_path / "7")
    assert weights_of(tmp_path / "0") != weights_of(tmp_path / "7")


def test_a_module_that_the_model_has_not_is_named(world: World, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    source = f'{{{{model: {{{{path: "{world["base"]}"}}}}}}}}'.replace("{{", "{").replace("}}", "}")
    slices = f"{{slices: [{{sources: [{{model: {source}, layer_range: [0, 2]}}]}}]}}"
    file.write_text(f"merge_method: passthrough\nmodules:\n  text_decoder: {slices}\ndtype: float32\n")
    shown = call("merge", file, tmp_path / "out", "--quiet", code=2)
    assert "modules: text_decoder: the model has none so called. There are default." in " ".join(shown.split())


def test_an_error_of_the_linter_stops_the_merge_and_leaves_what_it_says(world: World, tmp_path: Path) -> None:
    file, out = tmp_path / "mine.yml", tmp_path / "out"
    file.write_text(MINE.format(base=world["base"], sft=world["sft"], more="desnity: 0.5"))
    shown = call("fuse", out, "--recipe", file, code=2)
    (finding,) = [each for each in LintFile.read(out / "lint.json").recipes[0].findings if each.severity == "error"]
    assert f"Error: {finding.code} {out / 'recipe.yml'}" in shown
    assert finding.fix in shown
    assert list(names(out)) == ["lint.json", "recipe.yml"]
    # Mended, the same command goes on: what the last attempt left is its own.
    file.write_text(MINE.format(base=world["base"], sft=world["sft"], more=""))
    call("fuse", out, "--recipe", file, "--quiet")
    assert weights_of(out)


def test_a_folder_with_anything_else_in_it_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    shown = call("fuse", tmp_path, *branches(world), "--method", "ties", code=2)
    assert "exists and is not empty" in shown
    assert list(names(tmp_path)) == ["mine"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "Missing --base, --sft, --preference, --method"),
        (("--base", "b", "--sft", "s", "--preference", "p"), "Missing --method"),
        (("--recipe", __file__, "--method", "ties", "--density", 0.5), "--method, --density: for a recipe"),
    ],
)
def test_either_a_recipe_or_what_one_is_written_from(given: tuple[object, ...], said: str, tmp_path: Path) -> None:
    assert said in " ".join(call("fuse", tmp_path / "out", *given, code=2).split())
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_said_before_anything_is_written(world: World, tmp_path: Path) -> None:
    shown = call("fuse", tmp_path / "out", *branches(world), "--method", "ties", "--density", 2, code=2)
    assert "--density" in shown
    assert not (tmp_path / "out").exists()
