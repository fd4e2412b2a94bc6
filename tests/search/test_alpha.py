"""The way from one branch to the other: exact at its ends, and what is scored in memory is what would be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paft_plugin.errors import PaftError, run_request
from paft_plugin.evaluation.held_out_rows import write_rows
from paft_plugin.fusion.merge import open_fusion, write_fusion
from paft_plugin.fusion.recipe.render import adapter_recipe, interpolation_recipe
from paft_plugin.search.alpha import AlphaRequest, find_alpha, work
from paft_plugin.search.alpha_curve import AlphaCurve
from paft_plugin.search.bench import FusedModel
from tests.evaluation.rows import random_rows


def request_in(folder: Path, world: Path, evaluation: dict[str, Any], **more: Any) -> AlphaRequest:
    measures = folder / "measures.json"
    measures.write_text(json.dumps({"device": "cpu", "dtype": "float32", **evaluation}), encoding="utf-8")
    asked = {
        "arm": "paft-alpha",
        "base": world / "base",
        "branches": (world / "sft", world / "preference"),
        "names": ("sft", "preference"),
        "points": 3,
        "measures": measures,
        "held_out": None,
        "skills": ("first",),
        "preferences": ("second",),
        "out_dtype": "float32",
        "seed": 1,
        "folder": folder / "alpha",
        **more,
    }
    return AlphaRequest.model_validate(asked)


def merged(recipe: str, folder: Path) -> dict[str, torch.Tensor]:
    """What `axolotl paft merge` writes."""
    folder.mkdir()
    (folder / "recipe.yml").write_text(recipe, encoding="utf-8")
    write_fusion(open_fusion(folder / "recipe.yml", 1), folder / "model")
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("alpha", "branch"), [(0.0, "sft"), (1.0, "preference")])
def test_either_end_is_the_branch_to_the_last_bit(world: Path, tmp_path: Path, alpha: float, branch: str) -> None:
    branches = (world / "sft", world / "preference")
    end = merged(interpolation_recipe(world / "base", branches, alpha, "float32"), tmp_path / "end")
    alone = merged(adapter_recipe(world / "base", world / branch, "float32"), tmp_path / "alone")
    assert end.keys() == alone.keys()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in end.items())


def test_a_point_is_the_sum_and_the_model_in_memory_is_the_merged_one(world: Path, tmp_path: Path) -> None:
    branches = (world / "sft", world / "preference")
    ends = [merged(adapter_recipe(world / "base", each, "float32"), tmp_path / each.name) for each in branches]
    base = load_file(world / "base" / "model.safetensors")
    recipe = interpolation_recipe(world / "base", branches, 0.3, "float32")
    written = merged(recipe, tmp_path / "point")
    for name, tensor in written.items():
        sft, preference = (end[name].double() - base[name].double() for end in ends)
        torch.testing.assert_close(
            tensor.double(), base[name].double() + 0.7 * sft + 0.3 * preference, rtol=0, atol=1e-6
        )
    model = FusedModel(world / "base", "float32", "cpu")
    model.become(tmp_path / "point" / "recipe.yml", 1)
    held = dict(model.model.named_parameters())
    assert all(torch.equal(parameter, written[name]) for name, parameter in held.items())


def test_the_way_is_scored_on_validation_items_with_calibration_and_only_a_recipe_is_written(
    world: Path, tmp_path: Path
) -> None:
    request = request_in(
        tmp_path, world, {"tasks": str(world / "tasks"), "measures": {"first": {}, "second": {}}, "held_out": False}
    )
    curve = find_alpha(request)
    assert [point.alpha for point in curve.points] == [0.0, 0.5, 1.0]
    assert all(set(point.scores) == {"first", "second"} for point in curve.points)
    assert all(0 <= error <= 1 for point in curve.points for error in point.calibration.values())
    assert set(curve.points[0].calibration) == {"first", "second"}
    assert curve.points[0].scores != curve.points[2].scores
    assert AlphaCurve.read(request.folder / "alpha.json") == curve
    assert sorted(file.name for file in request.folder.iterdir()) == ["alpha.json", "recipe.yml"]
    assert (
        f"alpha {curve.chosen:g}." in (request.folder / "recipe.yml").read_text(encoding="utf-8").splitlines()[0] + "."
    )


def test_held_out_rows_of_the_validation_split_and_no_others_are_asked(world: Path, tmp_path: Path) -> None:
    rows = random_rows(count=8)
    for name, own in (("sft", rows.answers["sft"]), ("preference", rows.pairs["dpo"])):
        split = [
            row.model_copy(update={"split": "validation" if place < 5 else "test"}) for place, row in enumerate(own)
        ]
        write_rows(tmp_path / "held_out" / f"{name}.jsonl", split)
    request = request_in(tmp_path, world, {}, held_out=tmp_path / "held_out", skills=(), preferences=())
    curve = find_alpha(request)
    assert {curve.items[name] for name in ("sft_nll", "preference")} == {5}
    assert set(curve.points[1].scores) >= {"sft_match", "sft_nll", "preference", "preference_gained", "kl_to_base"}
    assert curve.base["preference"] == 0
    assert set(curve.goals) <= {"sft_match", "preference"}


def test_without_validation_items_no_point_can_be_chosen(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_in(
        tmp_path, world, {"tasks": str(world / "test_tasks"), "measures": {"first": {}}, "held_out": False}
    )
    with pytest.raises(PaftError, match="there are no validation items to choose a point by"):
        find_alpha(request)
    file = tmp_path / "request.json"
    file.write_text(request.model_dump_json(), encoding="utf-8")
    assert run_request([str(file)], "paft_plugin.search.alpha", work) == 2
    assert "no validation items" in capsys.readouterr().err
