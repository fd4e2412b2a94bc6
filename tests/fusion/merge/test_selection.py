"""The fast selection is mergekit's own, bit for bit, whichever of several equal magnitudes that keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit import sparsify
from mergekit.sparsify import RescaleNorm
from torch import Tensor

from paft_plugin.fusion.merge import selection

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NORMS = [None, *RescaleNorm]
densities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-9, 1e-3, 0.5, 1 - 1e-9, 1.0]))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """One to some thousand entries, of which many are equal in magnitude, or 0, or neither."""
    shape = draw(st.sampled_from([(1,), (7,), (17,), (1, 300), (33, 1), (40, 25), (3, 1001), (2500,)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    entries = torch.randn(shape, generator=generator, dtype=torch.float64)
    # The fewer steps, the more ties; without steps, none.
    steps = draw(st.sampled_from([0, 1, 3, 30, 3000]))
    entries = (entries * steps).round() / steps if steps else entries
    kept = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    order = draw(st.sampled_from(["any", "rising", "falling"]))
    if order != "any":
        entries = entries.flatten().sort(descending=order == "falling").values.reshape(shape)
    return (entries * kept * draw(st.sampled_from([1e-3, 1.0]))).to(draw(st.sampled_from(DTYPES)))


def test_the_shortcuts_hold_on_this_machine() -> None:
    # Where they don't, mergekit's own functions do the work; then the tests below prove nothing, and this one says so.
    assert selection._same_order()
    assert selection._same_draws()


@given(tensors(), densities, st.sampled_from(NORMS))
@settings(max_examples=300, deadline=None)
def test_magnitude(tensor: Tensor, density: float, norm: RescaleNorm | None) -> None:
    same(selection.magnitude(tensor, density, norm), sparsify.magnitude(tensor, density, norm))


@given(tensors(), densities, st.sampled_from([0.0, 0.01, 0.3, 0.9]), st.sampled_from(NORMS))
@settings(max_examples=300, deadline=None)
def test_magnitude_outliers(tensor: Tensor, density: float, gamma: float, norm: RescaleNorm | None) -> None:
    ours = selection.magnitude_outliers(tensor, density, norm, gamma)
    same(ours, sparsify.magnitude_outliers(tensor, density, norm, gamma))


@given(tensors(), densities, st.sampled_from(NORMS), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_bernoulli(tensor: Tensor, density: float, norm: RescaleNorm | None, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours, after = selection.bernoulli(tensor, density, norm), torch.get_rng_state()
        torch.manual_seed(seed)
        same(ours, sparsify.bernoulli(tensor, density, norm))
        assert torch.equal(after, torch.get_rng_state())


@given(tensors(), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.sampled_from(NORMS), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_della_magprune(tensor: Tensor, density: float, part: float, norm: RescaleNorm | None, seed: int) -> None:
    epsilon = part * min(density, 1 - density)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            theirs, after = sparsify.della_magprune(tensor, density, epsilon, norm), torch.get_rng_state()
        except RuntimeError:  # a row of one entry has no ranks: their p is NaN
            with pytest.raises(RuntimeError):
                selection.della_magprune(tensor, density, epsilon, norm)
            return
        torch.manual_seed(seed)
        same(selection.della_magprune(tensor, density, epsilon, norm), theirs)
        assert torch.equal(after, torch.get_rng_state())


def test_the_same_mistakes_are_refused() -> None:
    tensor = torch.randn(4, 4)
    for density, epsilon in ((0.9, 0.2), (0.1, 0.2)):
        with pytest.raises(ValueError, match="Epsilon"):
            selection.della_magprune(tensor, density, epsilon)


def test_a_delta_of_rounded_weights_has_ties_at_the_threshold_and_keeps_mergekits() -> None:
    torch.manual_seed(0)
    base = torch.randn(600, 500) * 0.02
    delta = (base + torch.randn(600, 16) @ torch.randn(16, 500) * 1e-5) - base
    trimmed = sparsify.magnitude(delta, 0.5)
    threshold = trimmed[trimmed != 0].abs().min()
    assert int((delta.abs() == threshold).sum()) > int((trimmed.abs() == threshold).sum()) > 0
    same(selection.magnitude(delta, 0.5), trimmed)


def test_an_order_made_to_defeat_the_quicksort_and_nan_are_left_to_the_sort() -> None:
    assert selection.first_in_order(killer(), 200) is None
    assert selection.first_in_order(killer(), 10) is not None
    with_nan = np.ones(100, dtype=np.float32)
    with_nan[3] = np.nan
    assert selection.first_in_order(with_nan, 50) is None
    for w in (killer(), with_nan):
        tensor = torch.from_numpy(w.copy())
        assert torch.equal(
            selection.magnitude(tensor, 0.5).nan_to_num(-1), sparsify.magnitude(tensor, 0.5).nan_to_num(-1)
        )


def killer() -> np.ndarray:
    """300 equal keys behind 100 that make the introsort split off two at a time, until it turns to a heapsort.

    Made backwards: the two greatest of a part are its second and its middle entry, so the smaller of them is the median.
    """
    keys = [1] * 300
    while len(keys) < 400:
        middle = (len(keys) + 2) // 2
        keys = [keys[middle - 2], len(keys), *keys]
        keys[middle] = len(keys) - 1
    return np.array(keys, dtype=np.float32)


def same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
