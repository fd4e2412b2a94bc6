"""What survives an election of signs, estimated from histograms: against a count, entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paft_plugin.inspection.diagnosis.signatures.dominance import survival
from tests.inspection.planted_runs import dense, histogram, interference, sparse

PAIRS = {
    "equals": (dense(1), dense(2)),
    "overpowered": (dense(1), 10 * dense(2)),
    "overpowering": (10 * dense(1), dense(2)),
    "sparse in dense": (sparse(1), dense(2)),
    "dense around sparse": (dense(1), sparse(2)),
}


def estimate(own: Tensor, other: Tensor, weight: float = 1.0) -> float:
    conflict = interference(own, other).conflict_weight
    assert conflict is not None
    kept = survival(histogram(own), histogram(other), conflict, weight=weight)
    assert kept is not None
    return kept


def count(own: Tensor, other: Tensor) -> float:
    return float(own[torch.sign(own) == torch.sign(own + other)].abs().sum() / own.abs().sum())


@pytest.mark.parametrize("weight", [1.0, 0.2])
@pytest.mark.parametrize("name", PAIRS)
def test_it_agrees_with_a_count_where_the_deltas_are_strangers(name: str, weight: float) -> None:
    own, other = PAIRS[name]
    assert estimate(own, other, weight) == pytest.approx(count(weight * own, other), abs=0.03)


def test_a_greater_weight_never_means_that_less_survives() -> None:
    kept = [estimate(dense(1), dense(2), weight) for weight in (0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0)]
    assert kept == sorted(kept)
    assert kept[0] == pytest.approx(0.5, abs=0.02)
    assert kept[-1] == pytest.approx(1.0, abs=0.02)


def test_what_is_not_contested_survives() -> None:
    own, other = histogram(dense(1)), histogram(dense(2))
    assert survival(own, other, conflict=0.5, contested=0.0) == 1.0
    assert survival(own, other, conflict=0.0) == 1.0
    assert survival(own, histogram(torch.zeros(10)), conflict=0.5) == 1.0


def test_zeros_have_nothing_to_lose() -> None:
    assert survival(histogram(torch.zeros(10)), histogram(dense(1)), conflict=0.5) is None
