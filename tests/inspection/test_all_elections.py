"""The election among all deltas at once: by hand, as mergekit holds it, and as pairs have it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paft_plugin.formats import threshold_key
from paft_plugin.inspection.inspect import Settings, inspect_deltas
from paft_plugin.inspection.inspected import Inspection, read_inspection, write_inspection
from paft_plugin.inspection.measures import Vote
from tests.inspection import brute

DENSITIES = (0.1, 0.5, 1.0)
NAME = "model.layers.0.mlp.up_proj.weight"
OTHER = "model.layers.1.mlp.up_proj.weight"


def inspect(
    folder: Path,
    deltas: Mapping[str, Mapping[str, Tensor]],
    densities: Sequence[float] = DENSITIES,
    fused: tuple[str, ...] = (),
) -> Inspection:
    """Of deltas (name → tensor → entries) on a base of zeros."""
    shapes = {name: tensor for tensors in deltas.values() for name, tensor in tensors.items()}
    base = {name: torch.zeros_like(tensor) for name, tensor in shapes.items()} | {"lm_head.weight": torch.zeros(1, 1)}
    for which, tensors in {"base": {}, **deltas}.items():
        (folder / which).mkdir(parents=True)
        save_file({**base, **tensors}, folder / which / "model.safetensors")
        (folder / which / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = Settings((), tuple(densities), fused=fused)
    return inspect_deltas(folder / "base", {which: folder / which for which in deltas}, settings)


def votes(inspection: Inspection, density: float) -> dict[str, Vote]:
    assert inspection.elections is not None
    return dict(inspection.elections.total.ties[threshold_key(density)])


def test_what_is_not_fused_with_the_others_elects_no_signs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deltas = {which: {NAME: torch.randn(4, 8)} for which in ("math", "code", "taste", "control")}
    three = {which: deltas[which] for which in ("math", "code", "taste")}
    beside = inspect(tmp_path / "beside", deltas, fused=tuple(three))
    assert votes(beside, 0.5) == votes(inspect(tmp_path / "alone", three), 0.5)
    assert inspect(tmp_path / "pair", deltas, fused=("math", "code")).elections is None


def test_three_deltas_by_hand(tmp_path: Path) -> None:
    deltas = {
        "math": torch.tensor([[3.0, 3.0, -2.0, 1.0, -1.0, 0.0, 5.0]]),
        "code": torch.tensor([[1.0, -2.0, 1.0, -1.0, 1.0, 2.0, -2.0]]),
        "taste": torch.tensor([[-2.0, -2.0, 0.5, 0.0, -0.5, 2.0, -2.0]]),
    }
    # Entry by entry: + wins by 4 to 2, so taste loses, to math alone (3 ≥ 2) | − wins by 4 to 3, math loses to a coalition
    # (2 < 3) | − wins by 2 to 1.5, code and taste lose to math alone (2 > 1.5) | 1 to 1 goes to +, code loses to one |
    # − wins by 1.5 to 1, code loses to a coalition (math's 1 is no more than code's) | both + | + wins by 5 to 4, both lose.
    found = votes(inspect(tmp_path, {which: {NAME: delta} for which, delta in deltas.items()}), 1.0)
    assert found == {
        "math": Vote(6, 5, 0, 1, 3.0 + 2.0 + 1.0 + 1.0 + 5.0),
        "code": Vote(7, 3, 3, 1, 1.0 + 2.0 + 2.0),
        "taste": Vote(6, 3, 3, 0, 2.0 + 0.5 + 2.0),
    }


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_every_count_is_that_of_mergekit(tmp_path: Path, count: int, zeros: float) -> None:
    torch.manual_seed(count)
    deltas = {f"d{n}": torch.randn(70, 91) * 10.0 ** (-n / 4) * (torch.rand(70, 91) >= zeros) for n in range(count)}
    inspection = inspect(tmp_path, {which: {NAME: delta} for which, delta in deltas.items()})
    for density in DENSITIES:
        expected = brute.election(list(deltas.values()), density)
        for vote, ours in zip(votes(inspection, density).values(), expected, strict=True):
            assert (vote.nonzero - vote.trimmed, vote.won, vote.lost_to_one, vote.lost_to_several) == ours[:4]
            assert vote.mass == pytest.approx(ours[4], rel=1e-5)


def test_equal_magnitudes_at_an_edge_are_kept_with_equal_chance(tmp_path: Path) -> None:
    """On a coarse grid most entries are at some edge: mergekit's choice is one of many, ours their mean."""
    torch.manual_seed(0)
    deltas = [torch.randint(-3, 4, (48, 48)).float() for _ in range(3)]
    inspection = inspect(tmp_path, {f"d{n}": {NAME: delta} for n, delta in enumerate(deltas)}, (0.25,))
    orders = [torch.stack([torch.randperm(48 * 48) for _ in deltas]) for _ in range(60)]
    outcomes = []
    for order in orders:
        # Each delta's own choice at its edge: by adding less than a step of the grid in a random order.
        nudged = [
            delta * (1 + 1e-4 * place.reshape(48, 48) / place.numel())
            for delta, place in zip(deltas, order, strict=True)
        ]
        trimmed = [torch.where(brute.kept(near, 0.25), delta, 0) for near, delta in zip(nudged, deltas, strict=True)]
        outcomes.append(brute.election(trimmed, 1.0))
    for vote, drawn in zip(votes(inspection, 0.25).values(), torch.tensor(outcomes).unbind(1), strict=True):
        # Lots draw about as many as there is room for: off by what chance does to so many.
        means, errors = drawn.double().mean(0), (drawn.double().var(0) + 0.25 * (vote.nonzero - vote.trimmed)).sqrt()
        for place, ours in enumerate((vote.won, vote.lost_to_one, vote.lost_to_several), 1):
            assert ours == pytest.approx(float(means[place]), abs=4 * float(errors[place]))


def test_the_order_of_deltas_and_a_delta_of_zeros_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(1)
    deltas = {f"d{n}": torch.randn(40, 50) for n in range(3)}
    found = []
    for n, order in enumerate(itertools.permutations(deltas)):
        inspection = inspect(tmp_path / str(n), {which: {NAME: deltas[which]} for which in order})
        found.append({density: votes(inspection, density) for density in DENSITIES})
    with_zeros = {**deltas, "nothing": torch.zeros(40, 50)}
    zeros = inspect(tmp_path / "zeros", {which: {NAME: delta} for which, delta in with_zeros.items()})
    for density in DENSITIES:
        everyone = votes(zeros, density)
        assert everyone.pop("nothing") == Vote(0, 0, 0, 0, 0.0)
        for other in (*(each[density] for each in found[1:]), everyone):
            for which, vote in found[0][density].items():
                assert (vote.won, vote.lost_to_one, vote.lost_to_several) == (
                    other[which].won,
                    other[which].lost_to_one,
                    other[which].lost_to_several,
                )


def test_a_tensor_that_two_of_three_change_is_an_election_between_these(tmp_path: Path) -> None:
    torch.manual_seed(2)
    one, other, third = (torch.randn(30, 30) for _ in range(3))
    inspection = inspect(tmp_path, {"one": {NAME: one}, "other": {NAME: other}, "third": {OTHER: third}})
    (pair,) = [pair for pair in inspection.pairs if (pair.first, pair.second) == ("one", "other")]
    for density in DENSITIES:
        found, election = votes(inspection, density), pair.figures.total.ties[threshold_key(density)]
        assert (found["one"].won, found["other"].won) == election.elected
        assert (found["one"].lost_to_one, found["other"].lost_to_one) == election.lost
        assert (found["one"].mass, found["other"].mass) == pytest.approx(election.mass)
        assert (found["third"].lost_to_one, found["third"].lost_to_several) == (0, 0)


def test_the_figures_of_groups_add_up_and_two_deltas_have_none(tmp_path: Path) -> None:
    torch.manual_seed(3)
    deltas = {f"d{n}": {NAME: torch.randn(20, 30), OTHER: torch.randn(20, 30)} for n in range(3)}
    inspection = inspect(tmp_path / "three", deltas)
    write_inspection(inspection, tmp_path / "file")
    elections = read_inspection(tmp_path / "file").elections
    assert elections == inspection.elections
    assert elections is not None
    for which in ("d0", "d1", "d2"):
        whole = elections.total.ties["0.5"][which]
        for groups in (
            elections.layers.values(),
            elections.modules.values(),
            [each.figures for each in elections.tensors],
        ):
            assert sum(group.ties["0.5"][which].won for group in groups) == whole.won
    two = inspect(tmp_path / "two", {which: deltas[which] for which in ("d0", "d1")})
    assert two.elections is None
    assert "elections" not in two.content()


def test_a_dense_twin_elects_nothing_beside_the_branch_that_it_is_the_twin_of(tmp_path: Path) -> None:
    torch.manual_seed(4)
    deltas = {which: {NAME: torch.randn(20, 30)} for which in ("math", "math-l1", "code-l1", "taste")}
    inspection = inspect(tmp_path / "four", deltas)
    assert list(votes(inspection, 0.5)) == ["math-l1", "code-l1", "taste"]
    pair = {which: deltas[which] for which in ("math", "math-l1", "taste")}
    assert inspect(tmp_path / "three", pair).elections is None
