"""NaN and infinity: refused wherever they come from, never written; only what the base itself holds stays, and that is said."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from paft_plugin.cli import paft
from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.errors import PaftError
from paft_plugin.fusion.adapter import write_adapter
from paft_plugin.fusion.merge import open_fusion, write_fusion
from paft_plugin.fusion.merge.fusion import NotFiniteError
from tests.deltas.builders import edit_config, make_adapter, make_base
from tests.fusion.merge.tools import assert_same, branch, content, load_all, ours, reference, save
from tests.fusion.world import World

WEIGHT = "model.layers.0.mlp.up_proj.weight"


def changed(folder: Path, copy: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a model's or adapter's folder, with other tensors."""
    shutil.copytree(folder, copy)
    (file,) = copy.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


def call(command: str, world: World, adapter: Path, folder: Path) -> Result:
    """A command that reads `adapter` as one of two branches and writes into `folder`."""
    recipe = content("task_arithmetic", world["base"], branch(world, "sft"), reference(world["base"], adapter))
    merge = [str(save(recipe, folder.parent / "given.yml")), str(folder / "out"), "--quiet"]
    branches = [f"--base={world['base']}", f"--sft={world['sft']}", f"--preference={adapter}", "--method=ties"]
    arguments = {
        "merge": merge,
        "merge --adapter": merge,
        "fuse": [str(folder / "out"), "--quiet", *branches],
        "recipe --materialize": [f"--output={folder / 'r.yml'}", *branches],
        "inspect": [f"dpo={adapter}", f"--base={world['base']}", f"--output-dir={folder / 'out'}"],
    }
    return CliRunner().invoke(paft, [*command.split(), *arguments[command]])


COMMANDS = ["merge", "merge --adapter", "fuse", "recipe --materialize", "inspect"]


def overflowing(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if "up_proj" in name:
            tensor.fill_(1e30)


def assert_refused(result: Result, folder: Path, *said: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    for part in said:
        assert part in result.output
    assert {file.name for file in (folder / "out").rglob("*")} <= {"recipe.yml", "lint.json"}
    # Of two branches the other one may be materialized already, and is whole.
    assert all(tensor.isfinite().all() for file in folder.rglob("*.safetensors") for tensor in load_file(file).values())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_scale_that_is_no_number_is_refused_by_every_command(command: str, world: World, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(world["dpo"], tmp_path / "adapter"))
    edit_config(adapter, lora_alpha=math.nan)
    assert_refused(call(command, world, adapter, tmp_path / "to"), tmp_path / "to", "lora_alpha", "nan")


@pytest.mark.parametrize("command", COMMANDS)
def test_factors_whose_product_overflows_are_refused_by_every_command(
    command: str, world: World, tmp_path: Path
) -> None:
    adapter = changed(world["dpo"], tmp_path / "adapter", overflowing)
    assert_refused(call(command, world, adapter, tmp_path / "to"), tmp_path / "to", "up_proj", "NaN or infin")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("lora_alpha", value) for value in (math.inf, -math.inf, 1e308, 10**40, True, "8")),
        *(("alpha_pattern", {"up_proj": value}) for value in (math.nan, math.inf, 1e39)),
        *(("rank_pattern", {"up_proj": value}) for value in (math.nan, math.inf, 0, -1)),
        *(("r", value) for value in (math.nan, 0, 1e308)),
    ],
)
def test_a_config_whose_scale_or_rank_is_no_finite_number_is_refused(
    key: str, value: Any, world: World, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(world["dpo"], tmp_path / "adapter"))
    edit_config(adapter, **{key: value})
    with pytest.raises(PaftError, match=key):
        open_adapter(adapter)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("task_arithmetic", {"parameters": {"lambda": 1e38, "weight": 1e10}}),
        ("linear", {"parameters": {"weight": 1e38, "normalize": False}}),
        ("ties", {"parameters": {"lambda": 1e300, "weight": 1.0, "density": 0.5}}),
        ("linear", {"out_dtype": "float16"}),
    ],
)
def test_what_overflows_in_the_merge_itself_is_not_written(
    method: str, keys: dict[str, Any], world: World, tmp_path: Path
) -> None:
    def large(tensors: dict[str, Tensor]) -> None:
        tensors[WEIGHT][0, :2] = 1e5

    models = [reference(changed(world[name], tmp_path / name, large)) for name in ("sft-full", "dpo-full")]
    recipe = content(method, world["base"], *models, **keys)
    for model in recipe["models"]:
        model.pop("parameters", None)
    if "out_dtype" in keys:
        recipe["parameters"] = {"weight": 0.5}
    with pytest.raises(NotFiniteError, match="would be NaN or infinite"):
        write_fusion(open_fusion(save(recipe, tmp_path / "r.yml")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["adapters", "models"])
def test_what_the_base_holds_stays_in_its_place_and_is_said(kind: str, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[WEIGHT][3, 5], tensors[WEIGHT][4, 6] = math.nan, -math.inf

    clean = make_base(tmp_path / "clean")
    adapters = [make_adapter(clean, tmp_path / f"adapter-{seed}", seed=seed) for seed in (1, 2)]
    base = changed(clean, tmp_path / "base", spoil)
    models = [reference(base, adapter) for adapter in adapters]
    if kind == "models":
        full = content("linear", clean, reference(clean, adapters[0]))
        write_fusion(open_fusion(save(full, tmp_path / "full.yml")), tmp_path / "full")
        models = [reference(changed(tmp_path / "full", tmp_path / "spoilt", spoil))]
    for adapter in adapters:
        edit_config(adapter, base_model_name_or_path=str(base))
    recipe = save(content("task_arithmetic", base, *models), tmp_path / "r.yml")
    result = CliRunner().invoke(paft, ["merge", str(recipe), str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 0, result.output
    assert f"{WEIGHT}: NaN or infinity in 2 entries, as in the base model" in result.stderr
    merged = load_all(tmp_path / "out")[WEIGHT]
    assert (~merged.isfinite()).nonzero().tolist() == [[3, 5], [4, 6]]
    assert any(
        "as in the base" in said for said in json.loads((tmp_path / "out" / "paft.json").read_text())["findings"]
    )
    if kind == "adapters":
        sides = [f"--{name}={adapter}" for name, adapter in zip(("sft", "preference"), adapters, strict=True)]
        made = [f"--base={base}", *sides, "--method=ties", f"--output={tmp_path / 'made.yml'}", "--materialize"]
        result = CliRunner().invoke(paft, ["recipe", *made])
        assert result.exit_code == 0, result.output
        assert f"{WEIGHT}: NaN or infinity in 2 entries, as in the base model" in result.stderr
    assert_same({WEIGHT: merged.nan_to_num()}, {WEIGHT: ours(recipe)[WEIGHT].nan_to_num()})


def test_a_branch_that_holds_it_where_the_base_does_not_is_refused(world: World, tmp_path: Path) -> None:
    """Of slices the linter does not look at the weights, so this is the merge's own to find."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[WEIGHT][3, 5] = math.nan

    broken = changed(world["sft-full"], tmp_path / "broken", spoil)
    sources = [{"model": reference(model), "layer_range": [0, 2]} for model in (broken, world["dpo-full"])]
    recipe = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 0.5}}
    with pytest.raises(NotFiniteError, match=r"1 of its \d+ entries"):
        write_fusion(open_fusion(save({**recipe, "dtype": "float32"}, tmp_path / "r.yml")), tmp_path / "out")


def test_an_adapter_whose_product_would_overflow_is_not_written(world: World, tmp_path: Path) -> None:
    """The factors themselves are finite; the linter looks at them first, and this is the writer's own check."""
    adapter = changed(world["dpo"], tmp_path / "adapter", overflowing)
    recipe = content("task_arithmetic", world["base"], branch(world, "sft"), reference(world["base"], adapter))
    with pytest.raises(NotFiniteError, match="up_proj"):
        write_adapter(open_fusion(save(recipe, tmp_path / "r.yml")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_search_goes_on_after_settings_that_overflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from paft_plugin.search import bench

    def become(*_: object) -> None:
        raise NotFiniteError("too large")

    monkeypatch.setattr(bench, "write_recipe", lambda _: None)
    monkeypatch.setattr(bench, "recipe_request", lambda *_: None)
    request: Any = None
    under: Any = SimpleNamespace(model=SimpleNamespace(become=become))
    goal: Any = SimpleNamespace(name="accuracy")
    opened = bench.TrialBench(request, [goal], under, {}, tmp_path / "r.yml")
    assert opened.score("ties", {}, 0) == (None, [None])


def test_an_inspection_of_a_base_with_it_says_so(world: World, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[WEIGHT][3, 5] = torch.nan

    base = changed(world["base"], tmp_path / "base", spoil)
    adapter = Path(shutil.copytree(world["sft"], tmp_path / "adapter"))
    edit_config(adapter, base_model_name_or_path=str(base))
    for given in (adapter, changed(world["sft-full"], tmp_path / "model", spoil)):
        result = CliRunner().invoke(
            paft, ["inspect", f"it={given}", f"--base={base}", f"--output-dir={tmp_path / 'out'}"]
        )
        assert_refused(result, tmp_path / "out", "NaN or infinity", str(base), WEIGHT)
