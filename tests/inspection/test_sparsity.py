"""Sparsity is a plain count, whatever the blocks that it is taken in."""

from __future__ import annotations

import json
import math

import pytest
import torch

import paft_plugin.inspection.sparsity as module
from paft_plugin.errors import PaftError
from paft_plugin.inspection.sparsity import sparsity
from paft_plugin.thresholds import threshold_key

THRESHOLDS = [0.0, 1e-5, 2.5e-5, 1e-3]


@pytest.mark.parametrize("block", [1, 7, 1 << 21])
def test_shares_and_norms_are_those_of_the_whole_delta(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    torch.manual_seed(0)
    delta = {"a": torch.randn(5, 13) * 1e-5, "b": torch.randn(3) * 1e-3, "c": torch.zeros(2, 2, 2)}
    entries = torch.cat([tensor.flatten() for tensor in delta.values()]).double()
    measured = sparsity(delta.items(), THRESHOLDS)
    assert measured.entries == 5 * 13 + 3 + 8
    for threshold in THRESHOLDS:
        assert measured.shares[threshold_key(threshold)] == float((entries.abs() <= threshold).double().mean())
    assert measured.l1_norm == pytest.approx(float(entries.abs().sum()), rel=1e-12)
    assert measured.l2_norm == pytest.approx(float(entries.norm()), rel=1e-12)


def test_an_entry_at_the_threshold_is_counted_and_a_larger_one_is_not() -> None:
    measured = sparsity([("w", torch.tensor([0.5, -0.5, 0.75]))], [0.5])
    assert measured.shares == {"0.5": 2 / 3}


def test_sums_are_in_fp64() -> None:
    # In fp32 the small entries would vanish beside the large one.
    measured = sparsity([("w", torch.tensor([1e8] + [1.0] * 1000))], [])
    assert measured.l1_norm == 1e8 + 1000


@pytest.mark.parametrize(("threshold", "key"), [(1e-5, "1e-05"), (2.5e-5, "2.5e-05"), (0.001, "0.001"), (0, "0.0")])
def test_keys_are_short_and_lose_nothing(threshold: float, key: str) -> None:
    assert threshold_key(threshold) == key
    assert float(key) == threshold


def test_result_is_json() -> None:
    measured = sparsity([("w", torch.ones(4))], THRESHOLDS)
    assert json.loads(json.dumps(measured.as_json(), allow_nan=False))["shares"]["1e-05"] == 0.0


def test_a_larger_threshold_never_has_a_smaller_share() -> None:
    torch.manual_seed(1)
    shares = list(sparsity([("w", torch.randn(400) * 1e-4)], sorted(THRESHOLDS)).shares.values())
    assert shares == sorted(shares)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_delta_that_diverged_is_named(bad: float) -> None:
    with pytest.raises(PaftError, match=r"layer\.weight: its delta holds NaN or infinity"):
        sparsity([("layer.weight", torch.tensor([0.0, bad]))], [1e-5])


def test_nothing_to_measure_and_bad_thresholds_are_refused() -> None:
    with pytest.raises(PaftError, match="No entries"):
        sparsity([], [1e-5])
    with pytest.raises(PaftError, match="not a number ≥ 0"):
        sparsity([("w", torch.ones(1))], [-1e-5])
