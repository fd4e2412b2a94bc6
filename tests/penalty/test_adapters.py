"""Every way to train that is penalised: norm, sparsity and subgradient are those of the δ that PEFT itself would merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from paft_plugin.penalty.live import l2_norm, measure
from tests.penalty.adapters import TRAINED
from tests.penalty.models import (
    clear_threshold,
    copies,
    deltas_in_double,
    entries_of,
    live,
    move,
    token_rows,
    trainable,
)

STRENGTH = 0.01


@pytest.mark.parametrize("kind", TRAINED)
def test_norm_sparsity_and_gradients_are_those_of_the_deltas_that_peft_merges(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), live(model)
    assert measure(deltas, (0.0,)).sparsity == {0.0: 1.0}
    move(model)
    expected, twins = deltas_in_double(model, base)
    (STRENGTH * sum(delta.abs().sum() for delta in expected)).backward()
    entries = entries_of(expected)
    threshold = clear_threshold(entries)

    measured = measure(deltas, (threshold,))
    for delta in deltas:
        delta.add_subgradient(STRENGTH)

    assert measured.entries == entries.numel()
    assert measured.l1_norm == pytest.approx(entries.abs().sum().item(), rel=1e-6)
    assert measured.sparsity[threshold] == (entries.abs() <= threshold).sum().item() / entries.numel()
    assert_same_gradients(model, twins)


@pytest.mark.parametrize("kind", TRAINED)
def test_l2_norm_and_gradients_are_those_of_the_deltas_that_peft_merges(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), live(model)
    assert l2_norm(deltas) == 0
    move(model)
    expected, twins = deltas_in_double(model, base)
    (STRENGTH * sum(delta.square().sum() for delta in expected)).backward()
    assert l2_norm(deltas) == pytest.approx(entries_of(expected).norm().item(), rel=1e-6)
    for delta in deltas:
        delta.add_decay(STRENGTH)
    assert_same_gradients(model, twins)


def assert_same_gradients(model: nn.Module, twins: dict[str, nn.Parameter]) -> None:
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, name
        # A gradient in bf16 is rounded once.
        tolerance = {"rtol": torch.finfo(parameter.dtype).eps * 8, "atol": 1e-5}
        torch.testing.assert_close(
            parameter.grad.double(), twins[name].grad, **tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("kind", TRAINED)
def test_every_trainable_parameter_is_in_exactly_one_delta(kind: str, tmp_path: Path) -> None:
    """Without its task loss, a model has gradients just where it is trained, and each delta makes its own."""
    model = TRAINED[kind](tmp_path)
    deltas = live(model)
    move(model)
    seen: list[str] = []
    for delta in deltas:
        model.zero_grad(set_to_none=True)
        delta.add_subgradient(1.0)
        seen += [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert sorted(seen) == sorted(trainable(model))
    assert len({delta.name for delta in deltas}) == len(deltas)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_sample_is_of_the_deltas_own_entries(kind: str, tmp_path: Path) -> None:
    """All entries, each once, in whatever order; and the same entry wherever it stands in a sample."""
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), live(model)
    move(model)
    expected, _ = deltas_in_double(model, base)
    whole = [delta.sample(torch.arange(delta.entries)) for delta in deltas]
    torch.testing.assert_close(
        torch.cat(whole).double().sort().values, entries_of(expected).sort().values, rtol=1e-4, atol=1e-5
    )
    for delta, entries in zip(deltas, whole, strict=True):
        indices = torch.randint(delta.entries, (20,), generator=torch.Generator().manual_seed(0))
        picked = delta.sample(indices)
        assert picked.dtype == torch.float32
        torch.testing.assert_close(picked, entries[indices])


def test_a_quantised_base_is_trained_and_penalised_on_a_cpu(tmp_path: Path) -> None:
    """The subgradient joins the gradients of a real backward through the 4-bit base."""
    model = TRAINED["4 bits"](tmp_path)
    deltas, ids = live(model), token_rows()
    move(model)
    model(input_ids=ids, labels=ids).loss.backward()
    task = {name: parameter.grad.clone() for name, parameter in trainable(model).items()}
    for delta in deltas:
        delta.add_subgradient(STRENGTH)
    both = {name: parameter.grad.clone() for name, parameter in trainable(model).items()}
    model.zero_grad(set_to_none=True)
    for delta in deltas:
        delta.add_subgradient(STRENGTH)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(both[name], task[name] + parameter.grad)
        assert task[name].any()
