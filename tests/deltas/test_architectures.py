"""For every architecture, the delta names and holds what PEFT's merge, saved by transformers, differs from the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paft_plugin.deltas.belongs import check_belongs
from paft_plugin.deltas.delta import open_delta
from tests.deltas.architectures import ARCHITECTURES, save
from tests.deltas.builders import assert_same_delta, delta_as_saved, make_adapter, make_model, weights


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(ARCHITECTURES[request.param], tmp_path_factory.mktemp("models") / "base")


def test_an_adapter_on_all_linear_layers(base: Path, tmp_path: Path) -> None:
    """Of a mixture of experts PEFT takes the fused experts and the router for linear layers, where it knows them."""
    adapter = make_adapter(base, tmp_path / "adapter", size=0.3)
    expected = delta_as_saved(base, adapter, tmp_path / "merged")
    assert_same_delta(base, adapter, expected, atol=1e-5)
    delta = open_delta(base, adapter)
    assert set(delta.names) == {name for name, change in expected.items() if change.any()}
    assert max(change.abs().max().item() for _, change in delta.tensors()) > 0.1
    assert check_belongs(base, adapter) == []


def test_a_whole_model(base: Path, tmp_path: Path) -> None:
    model = make_model(base, tmp_path / "model")
    before, after = weights(base), weights(model)
    delta = dict(open_delta(base, model).tensors())
    assert delta.keys() == before.keys() == after.keys()
    assert all(torch.equal(delta[name], after[name] - before[name]) for name in before)
    assert check_belongs(base, model) == []
