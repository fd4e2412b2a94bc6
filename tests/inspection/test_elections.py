"""Trimming and the election of signs are mergekit's, entry for entry where no two magnitudes are equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paft_plugin.formats import threshold_key
from paft_plugin.inspection.inspect import Settings, inspect_deltas
from paft_plugin.inspection.measures import Election, Interference
from tests.inspection import brute

DENSITIES = (0.001, 0.1, 0.25, 0.5, 0.9, 1.0)
NAME = "model.layers.0.mlp.up_proj.weight"


def compare(folder: Path, one: Tensor, other: Tensor) -> Interference:
    """Two deltas of a single tensor, on a base of zeros."""
    for name, tensor in (("base", torch.zeros_like(one)), ("one", one), ("other", other)):
        (folder / name).mkdir()
        save_file({NAME: tensor, "lm_head.weight": torch.zeros(1, 1)}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    branches = {name: folder / name for name in ("one", "other")}
    (pair,) = inspect_deltas(folder / "base", branches, Settings((), DENSITIES)).pairs
    figures = pair.figures.cell(0, "mlp.up_proj")
    assert figures is not None
    for name in ("base", "one", "other"):
        shutil.rmtree(folder / name)
    return figures


def assert_as_mergekit(election: Election, one: Tensor, other: Tensor, density: float) -> None:
    expected = brute.ties(one, other, density)
    assert election.kept == expected["kept"]
    assert election.elected == expected["elected"]
    assert election.mass == pytest.approx(expected["mass"], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("zeros", [0.0, 0.7])
def test_without_equal_magnitudes_all_counts_are_mergekits(tmp_path: Path, seed: int, zeros: float) -> None:
    torch.manual_seed(seed)
    one, other = (torch.randn(37, 53) * scale * (torch.rand(37, 53) >= zeros) for scale in (1e-3, 4e-3))
    figures = compare(tmp_path, one, other)
    for density in DENSITIES:
        assert_as_mergekit(figures.ties[threshold_key(density)], one, other, density)


def test_equal_magnitudes_are_kept_with_equal_chance(tmp_path: Path) -> None:
    """On a coarse grid most entries are at some edge: mergekit's choice is one of many, ours their mean."""
    torch.manual_seed(0)
    one, other = (torch.randint(-3, 4, (64, 64)).float() for _ in range(2))
    figures, density = compare(tmp_path, one, other), 0.25
    election = figures.ties[threshold_key(density)]
    orders = [torch.randperm(one.numel()) for _ in range(40)]
    outcomes = [brute.ties(one.flatten()[order], other.flatten()[order], density) for order in orders]
    assert all(outcome["kept"] == election.kept for outcome in outcomes)
    for place in (0, 1):
        elected = torch.tensor([float(outcome["elected"][place]) for outcome in outcomes])
        # mergekit's sort does not choose evenly, so one order says little; the mean of many comes near.
        assert election.elected[place] == pytest.approx(float(elected.mean()), abs=4 * float(elected.std()) + 1)


def test_a_tie_of_opposite_signs_goes_to_the_positive_one(tmp_path: Path) -> None:
    one, other = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[-1.0, -1.0, 5.0]])
    election = compare(tmp_path, one, other).ties["1.0"]
    assert_as_mergekit(election, one, other, 1.0)
    assert election.lost == (0, 2)


def test_dare_expects_what_dropping_gives_on_average(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = torch.randn(64, 64), 2 * torch.randn(64, 64)
    figures, density = compare(tmp_path, one, other), 0.25
    expected = figures.dare[threshold_key(density)]
    runs = []
    for _ in range(200):
        dropped = [delta * (torch.rand_like(delta) < density) for delta in (one, other)]
        runs.append(brute.ties(dropped[0], dropped[1], 1.0))
    for place in (0, 1):
        for key, value in (("kept", expected.kept), ("elected", expected.elected), ("mass", expected.mass)):
            assert value is not None
            drawn = torch.tensor([float(run[key][place]) for run in runs])
            error = float(drawn.std()) / len(runs) ** 0.5
            assert abs(value[place] - float(drawn.mean())) <= 5 * error, key
