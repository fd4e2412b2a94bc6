"""Every measure agrees with the plain way to take it, on real adapters and models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paft_plugin.deltas.delta import open_delta
from paft_plugin.formats import threshold_key
from paft_plugin.inspection.inspect import Settings, inspect_deltas
from paft_plugin.inspection.inspected import Inspection, read_inspection, write_inspection
from paft_plugin.inspection.measures import Interference, Measures
from tests.deltas.builders import make_adapter, make_base, make_model
from tests.inspection import brute

THRESHOLDS = (1e-4, 1e-2, 3e-2)
DENSITIES = (0.1, 0.3, 0.5, 1.0)
SETTINGS = Settings(THRESHOLDS, DENSITIES)


def close(value: float | None, expected: float, rel: float = 1e-6) -> None:
    assert value == pytest.approx(expected, rel=rel)


def check_measures(found: Measures, entries: Tensor, base: Tensor, dtype: torch.dtype) -> None:
    assert found.entries == entries.numel()
    assert found.zeros == int((entries == 0).sum())
    for threshold in THRESHOLDS:
        assert found.small[threshold_key(threshold)] == int((entries.abs() <= threshold).sum())
    rounded = {str(each).removeprefix("torch."): each for each in {dtype, torch.bfloat16}}
    assert found.unseen == {
        name: int(((base.float() + entries).to(each) == base.to(each)).sum()) for name, each in rounded.items()
    }
    close(found.l1, float(entries.double().abs().sum()))
    close(found.l2, float(entries.double().norm()))
    close(found.base_l2, float(base.double().norm()))
    assert found.largest == float(entries.abs().max())
    if entries.any() and entries.numel() > 1:
        assert found.hoyer == pytest.approx(brute.hoyer(entries), abs=1e-6)
        # The bounds that `magnitudes` gives.
        assert found.gini == pytest.approx(brute.gini(entries), abs=2**-8)
        close(found.top_1_percent, brute.top_share(entries, 0.01), rel=2**-8)
        close(found.top_10_percent, brute.top_share(entries, 0.1), rel=2**-8)


def check_interference(found: Interference, one: Tensor, other: Tensor) -> None:
    assert found.entries == one.numel()
    for threshold in (0.0, *THRESHOLDS):
        a, b = one.abs() > threshold, other.abs() > threshold
        overlap = found.overlap[threshold_key(threshold)]
        assert (overlap.first, overlap.second) == (int(a.sum()), int(b.sum()))
        assert overlap.both == int((a & b).sum())
        assert overlap.conflicts == int((a & b & (one.sign() == -other.sign())).sum())
    product = one.double() * other.double()
    close(found.agreeing, float(product.clamp(min=0).sum()))
    close(found.opposing, float(-product.clamp(max=0).sum()))
    close(found.cosine, float(product.sum() / (one.double().norm() * other.double().norm())), rel=1e-5)


def check_ties(found: Interference, one: Tensor, other: Tensor, slack: int = 0) -> None:
    for density in DENSITIES:
        expected, election = brute.ties(one, other, density), found.ties[threshold_key(density)]
        assert election.kept == expected["kept"]
        for ours, theirs in zip(election.elected, expected["elected"], strict=True):
            assert abs(ours - theirs) <= slack
        assert election.mass == pytest.approx(expected["mass"], rel=1e-6 if slack == 0 else 0.05)


def of_kind(base: Path, folder: Path, kind: str, seed: int) -> Path:
    if kind == "adapter":
        return make_adapter(base, folder, seed=seed)
    return make_model(base, folder, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kinds", [("adapter", "adapter"), ("adapter", "model"), ("model", "model")])
def test_every_tensor_and_pair_is_as_brute_force_says(
    tmp_path: Path, kinds: tuple[str, str], dtype: torch.dtype
) -> None:
    base = make_base(tmp_path / "base", dtype=dtype)
    folders = {
        which: of_kind(base, tmp_path / which, kind, seed)
        for which, kind, seed in zip("ab", kinds, (1, 2), strict=True)
    }
    inspection = inspect_deltas(base, folders, SETTINGS)
    deltas = {which: open_delta(base, folder) for which, folder in folders.items()}
    changes = {which: dict(delta.tensors()) for which, delta in deltas.items()}
    for which, delta in deltas.items():
        assert inspection.delta(which).kind == delta.kind
        tensors = inspection.delta(which).figures.tensors
        assert sorted(tensor.name for tensor in tensors) == list(delta.names)
        for tensor in tensors:
            change = changes[which][tensor.name]
            check_measures(tensor.figures, change, delta.base.tensor(tensor.name), dtype)
            check_rank(tensor.figures, change, delta.kind)
    (pair,) = inspection.pairs
    assert {tensor.name for tensor in pair.figures.tensors} == set(changes["a"]) & set(changes["b"])
    for tensor in pair.figures.tensors:
        one, other = changes["a"][tensor.name], changes["b"][tensor.name]
        check_interference(tensor.figures, one, other)
        # Differences of bf16 weights lie on a grid: mergekit and we may keep others of the entries at the edge of a trim.
        ties = max(int((each.abs() == value).sum()) for each in (one, other) for value in each.abs().unique()[-400:])
        check_ties(tensor.figures, one, other, slack=0 if ties == 1 else 4 * ties)
        assert (tensor.figures.subspaces is not None) == (kinds == ("adapter", "adapter"))


def check_rank(found: Measures, change: Tensor, kind: str) -> None:
    if change.dim() != 2:
        assert found.effective_rank is None
        return
    assert found.effective_rank is not None
    expected, rank = brute.effective_rank(change), found.effective_rank
    if kind == "adapter":
        assert rank.standard_error == 0
        close(rank.value, expected, rel=1e-4)
    else:
        assert abs(rank.value - expected) <= max(5 * rank.standard_error, 0.1 * expected)


def test_groups_are_their_tensors_end_to_end(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    folders = {"a": make_adapter(base, tmp_path / "a", seed=1), "b": make_model(base, tmp_path / "b")}
    inspection = inspect_deltas(base, folders, SETTINGS)
    changes = {which: dict(open_delta(base, folder).tensors()) for which, folder in folders.items()}

    def joined(which: str, part: str) -> Tensor:
        return torch.cat([change.flatten() for name, change in sorted(changes[which].items()) if part in name])

    for which in folders:
        figures = inspection.delta(which).figures
        for part, found in (
            ("layers.1.", figures.layers[1]),
            ("q_proj", figures.modules["self_attn.q_proj"]),
            ("layers.0.mlp.up_proj", figures.cell(0, "mlp.up_proj")),
            ("", figures.total),
        ):
            entries = joined(which, part)
            assert found is not None
            assert found.entries == entries.numel()
            close(found.l2, float(entries.double().norm()))
            assert found.hoyer == pytest.approx(brute.hoyer(entries), abs=1e-6)
            close(found.top_1_percent, brute.top_share(entries, 0.01), rel=2**-8)
            assert found.effective_rank is None
    shared = inspection.pairs[0].figures
    product = joined("a", "layers.1.self_attn") @ joined("b", "layers.1.self_attn")
    cells = [found for (layer, module), found in shared.cells.items() if layer == 1 and "self_attn" in module]
    assert sum(cell.agreeing - cell.opposing for cell in cells) == pytest.approx(float(product), rel=1e-4)
    assert shared.total.entries == sum(layer.entries for layer in shared.layers.values())
    assert shared.total.ties["0.3"].kept[0] == sum(tensor.figures.ties["0.3"].kept[0] for tensor in shared.tensors)
    assert set(figures.modules) >= {"embed_tokens", "norm", "lm_head", "input_layernorm", "mlp.down_proj"}


def test_histogram_holds_every_entry(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    folder = make_model(base, tmp_path / "model")
    delta = inspect_deltas(base, {"model": folder}, SETTINGS).delta("model")
    entries = torch.cat([change.flatten() for _, change in open_delta(base, folder).tensors()])
    histogram = delta.histogram
    assert histogram.zeros == int((entries == 0).sum())
    assert sum(histogram.counts) + histogram.zeros + histogram.underflow + histogram.overflow == entries.numel()
    tenth = histogram.log10_edges.index(-2.0)
    above = int((entries.abs() >= 1e-2).sum())
    assert abs(sum(histogram.counts[tenth:]) - above) <= int(((entries.abs() / 1e-2 - 1).abs() < 2**-8).sum())


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    folders = {"a": make_adapter(base, tmp_path / "a", seed=1), "b": make_adapter(base, tmp_path / "b", seed=2)}
    inspection: Inspection = inspect_deltas(base, folders)
    write_inspection(inspection, tmp_path / "out")
    assert read_inspection(tmp_path / "out") == inspection
    text = (tmp_path / "out" / "inspection.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(inspection.content()))
    assert sum('"name": "model.layers.1.mlp.up_proj.weight"' in line for line in text.splitlines()) == 3
    assert len(text) < 1.2 * len(json.dumps(inspection.content()))
    assert math.isfinite(inspection.deltas[0].figures.total.l1)
