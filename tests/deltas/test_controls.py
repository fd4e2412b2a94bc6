"""Controls of a delta: exact counts, norms to the last digits, and what must be the same by two ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paft_plugin.deltas.controls import DeltaSize, Tensors, dropped, factor_to, measured, pruned, scaled
from paft_plugin.errors import PaftError

# Few values, so that many entries are equal; 5e-324 and the like are no fp32.
VALUES = st.lists(
    st.sampled_from([0.0, -0.0, 1e-30, 1e-6, -1e-6, 2e-5, -2e-5, 0.5, -3.0, 1e10]), min_size=1, max_size=12
)
DELTAS = st.lists(VALUES, min_size=1, max_size=5)


def of(rows: Sequence[Sequence[float]]) -> Tensors:
    return lambda: ((f"w{index}", torch.tensor(row, dtype=torch.float32)) for index, row in enumerate(rows))


def flat(delta: Tensors) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in delta()])


@pytest.fixture(scope="module")
def random() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (40, 30), "b": (7,), "c": (), "d": (50, 80)}
    tensors = {name: torch.randn(shape, generator=generator) * 1e-3 for name, shape in shapes.items()}
    return lambda: tensors.items()


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(rows=DELTAS, share=st.floats(0, 1))
def test_pruning_keeps_the_largest_exactly_and_of_equal_ones_the_last(rows: list[list[float]], share: float) -> None:
    delta = of(rows)
    values = flat(delta)
    count = int(share * len(values))
    order = torch.argsort(values.abs(), stable=True)
    expected = values.clone()
    expected[order[:count]] = 0
    assert torch.equal(flat(pruned(delta, count)), expected)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(rows=DELTAS, threshold=st.sampled_from([0.0, 1e-6, 1e-5, 1.0]))
def test_the_size_is_that_of_all_entries_in_one_row(rows: list[list[float]], threshold: float) -> None:
    size, values = measured(of(rows), threshold), flat(of(rows)).double()
    assert size.entries == len(values)
    assert size.zeros == int((values == 0).sum())
    assert size.small == int((values.abs().float() <= threshold).sum())
    assert size.l1 == pytest.approx(float(values.abs().sum()), rel=1e-12)
    assert size.l2 == pytest.approx(float(values.norm()), rel=1e-12)


def test_the_same_delta_cut_into_other_tensors_is_pruned_alike(random: Tensors) -> None:
    whole = flat(random)
    one = pruned(lambda: [("all", whole)], 4321)
    assert torch.equal(flat(one), flat(pruned(random, 4321)))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_rescaled_delta_has_the_norm_and_twice_is_once(random: Tensors, norm: str) -> None:
    def to(delta: Tensors, wanted: float) -> Tensors:
        return scaled(delta, factor_to(wanted, getattr(measured(delta, 0), norm)))

    once = to(random, 0.0123)
    assert getattr(measured(once, 0), norm) == pytest.approx(0.0123, rel=1e-6)
    torch.testing.assert_close(flat(to(to(random, 77.0), 0.0123)), flat(once), rtol=1e-6, atol=0)


@pytest.mark.parametrize("change", [lambda d: pruned(d, 0), lambda d: dropped(d, 0, 1), lambda d: scaled(d, 1.0)])
def test_nothing_changed_is_the_same_delta(random: Tensors, change: Callable[[Tensors], Tensors]) -> None:
    assert torch.equal(flat(change(random)), flat(random))


def test_pruned_in_two_goes_is_pruned_in_one(random: Tensors) -> None:
    assert torch.equal(flat(pruned(pruned(random, 1000), 3000)), flat(pruned(random, 3000)))
    assert measured(pruned(random, 3000), 0).zeros == 3000
    entries = measured(random, 0).entries
    assert measured(pruned(random, entries), 0).l1 == 0


def test_dropping_drops_exactly_so_many_and_expects_the_delta(random: Tensors) -> None:
    entries, count, times = measured(random, 0).entries, 2617, 200
    kept = torch.zeros(entries)
    for seed in range(times):
        one = dropped(random, count, seed)
        assert measured(one, 0).zeros == count
        kept += flat(one) / flat(random)
    share = 1 - count / entries
    # Of each entry: kept in about `share` of the draws, and then 1/share times as large. Five standard errors.
    spread = 5 * ((1 - share) / share / times) ** 0.5
    assert float((kept / times - 1).abs().max()) < spread
    assert float((kept / times).mean()) == pytest.approx(1, abs=1e-4)
    assert torch.equal(flat(dropped(random, count, 3)), flat(dropped(random, count, 3)))
    assert not torch.equal(flat(dropped(random, count, 3)), flat(dropped(random, count, 4)))


def test_what_cannot_be_is_refused(random: Tensors) -> None:
    with pytest.raises(PaftError, match="norm 0 cannot be rescaled to 3"):
        factor_to(3.0, 0.0)
    with pytest.raises(PaftError, match="cannot be rescaled to 0"):
        factor_to(0.0, 3.0)
    with pytest.raises(PaftError, match="all entries would be dropped"):
        dropped(random, measured(random, 0).entries, 0)
    assert DeltaSize(entries=4, l1=1, l2=1, zeros=1, small=3).share == 0.75
