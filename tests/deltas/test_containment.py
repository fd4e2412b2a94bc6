"""A delta that continued another one holds it once in every tensor; two that were trained apart do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paft_plugin.deltas.belongs import examine
from paft_plugin.deltas.containment import Products, containment, inside, of_adapters
from paft_plugin.deltas.delta import open_delta
from tests.deltas.builders import make_adapter, make_base, make_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tokenizer(make_base(folder / "base"))
    make_adapter(folder / "base", folder / "sft")
    make_adapter(folder / "base", folder / "apart", seed=2)
    make_adapter(folder / "base", folder / "saved", seed=3, modules_to_save=["lm_head"])
    make_adapter(folder / "base", folder / "continued")
    file, generator = folder / "continued" / "adapter_model.safetensors", torch.Generator().manual_seed(7)
    moved = {name: t + 0.005 * torch.randn(t.shape, generator=generator) for name, t in load_file(file).items()}
    save_file(moved, file)
    return folder


def products(models: Path, one: str, other: str) -> list[Products]:
    return of_adapters(*(open_delta(models / "base", models / name) for name in (one, other)))


@pytest.mark.parametrize(("one", "other"), [("sft", "apart"), ("sft", "saved"), ("saved", "continued")])
def test_the_products_of_factors_are_those_of_the_matrices(models: Path, one: str, other: str) -> None:
    deltas = [dict(open_delta(models / "base", models / name).tensors()) for name in (one, other)]
    zeros = {name: torch.zeros_like(change) for delta in deltas for name, change in delta.items()}
    first, second = ({name: delta.get(name, zeros[name]).double() for name in sorted(zeros)} for delta in deltas)
    expected = [
        (
            float((first[name] * second[name]).sum()),
            float(first[name].square().sum()),
            float(second[name].square().sum()),
        )
        for name in sorted(zeros)
    ]
    assert products(models, one, other) == [pytest.approx(each, rel=1e-4, abs=1e-9) for each in expected]


def test_a_branch_that_continued_another_is_told_from_one_that_did_not(models: Path) -> None:
    assert inside(products(models, "sft", "apart")) is None
    found = inside(products(models, "sft", "continued"))
    assert found is not None
    first, how = found
    assert (first, round(how.projection, 1)) == (True, 1.0)
    assert how.cosine > 0.9
    turned = inside(products(models, "continued", "sft"))
    assert turned is not None, "in whichever order they are given"


def test_what_is_within_the_other_is_told_by_size_and_of_two_equals_the_first_came_first() -> None:
    small, large = [(1.0, 1.0, 3.0), (2.0, 2.0, 6.0)], [(1.0, 3.0, 1.0), (2.0, 6.0, 2.0)]
    for tensors, first in ((small, True), (large, False), ([(1.0, 1.05, 1.0)], True), ([(1.0, 1.0, 1.05)], True)):
        found = inside(tensors)
        assert found is not None
        assert found[0] is first


def test_the_recipe_says_it_with_numbers_and_the_way_out(models: Path) -> None:
    def warnings(preference: str) -> list[str]:
        said = examine(models / "base", [models / "sft", models / preference]).warnings
        return [warning for warning in said if "counts twice" in warning]

    assert warnings("apart") == []
    (warning,) = warnings("continued")
    outer, inner = models / "continued", models / "sft"
    assert warning.startswith(f"{outer} holds the delta of {inner} 0.99 times")
    assert "cosine 0.9" in warning
    assert f"Use {outer} alone" in warning
    assert "weights 1 and −1" in warning


@pytest.mark.parametrize(
    ("tensors", "holds"),
    [
        ([(1.0, 1.0, 2.0), (2.0, 2.0, 4.0)], True),  # b = a + d in every tensor, d at a right angle and as large
        ([(1.9, 1.0, 4.0), (1.1, 2.0, 2.0)], False),  # as often on the whole, but here more and there less
        ([(0.5, 1.0, 1.0), (1.0, 2.0, 2.0)], False),  # alike everywhere, but half of it
        ([(1.0, 1.0, 40.0), (2.0, 2.0, 80.0)], False),  # once everywhere, but b is so large that this says little
        ([(1.0, 1.0, 1.0), (0.0, 1.0, 0.0)], False),  # a changes a tensor that b does not
    ],
)
def test_all_three_numbers_must_agree(tensors: list[Products], holds: bool) -> None:
    found = containment(tensors)
    assert found is not None
    assert found.holds is holds


def test_a_delta_of_zeros_holds_nothing_and_is_held_by_nothing() -> None:
    assert containment([(0.0, 0.0, 1.0)]) is None
    assert inside([(0.0, 1.0, 0.0)]) is None
    assert containment([]) is None
