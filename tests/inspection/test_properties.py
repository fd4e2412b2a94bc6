"""What must hold of any deltas, whatever their numbers."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import paft_plugin.inspection.stream as stream
from paft_plugin.deltas.measures import Magnitudes
from paft_plugin.inspection import kernels, pairs
from paft_plugin.inspection.inspect import Settings, inspect_deltas
from paft_plugin.inspection.inspected import InspectedPair, Inspection
from paft_plugin.inspection.measures import Measures
from paft_plugin.inspection.tally import SIZES
from tests.deltas.builders import make_adapter, make_base, make_model, merged_by_peft, weights
from tests.inspection import brute

SETTINGS = Settings((1e-5, 1e-2), (0.2, 1.0))
SCALE_FREE = ("hoyer", "gini", "top_1_percent", "top_10_percent")


def moved(base: Path, folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A model that `change` moved away from a base of fp32 zeros, so that its delta is exactly what was added."""
    folder.mkdir()
    save_file(
        {name: tensor + change(name, tensor) for name, tensor in weights(base).items()}, folder / "model.safetensors"
    )
    shutil.copy(base / "config.json", folder)
    return folder


@pytest.fixture
def zero_base(tmp_path: Path) -> Path:
    base = make_base(tmp_path / "base")
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights(base).items()}, base / "model.safetensors")
    return base


def noise(name: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return 0.02 * torch.randn(tensor.shape, generator=generator)


def pair_of(base: Path, one: Path, other: Path) -> InspectedPair:
    (pair,) = inspect_deltas(base, {"one": one, "other": other}, SETTINGS).pairs
    return pair


def test_scale_changes_no_scale_free_measure(tmp_path: Path, zero_base: Path) -> None:
    one = moved(zero_base, tmp_path / "one", noise)
    # By a power of two, so that no entry is rounded another way.
    other = moved(zero_base, tmp_path / "other", lambda name, tensor: noise(name, tensor) / 1024)
    inspection = inspect_deltas(zero_base, {"one": one, "other": other}, SETTINGS)
    large, small = (delta.figures.total for delta in inspection.deltas)
    for measure in SCALE_FREE:
        assert getattr(small, measure) == pytest.approx(getattr(large, measure), rel=1e-9)
    assert small.l1 == pytest.approx(large.l1 / 1024, rel=1e-9)
    # A small delta is small at a threshold, but no sparser.
    assert small.sparsity(1e-2) > large.sparsity(1e-2)


def test_an_entry_at_the_threshold_is_counted_and_sums_are_in_fp64(tmp_path: Path, zero_base: Path) -> None:
    def planted(_name: str, tensor: Tensor) -> Tensor:
        change = torch.full_like(tensor, 0.5)  # in fp32, beside 1e8, it would vanish from a sum
        change.view(-1)[0], change.view(-1)[1] = 1e8, 0.75
        return change

    model = moved(zero_base, tmp_path / "model", planted)
    for tensor in inspect_deltas(zero_base, {"x": model}, Settings((0.5,), (1.0,))).delta("x").figures.tensors:
        figures = tensor.figures
        assert figures.small == {"0.5": figures.entries - 2}
        assert figures.l1 == 1e8 + 0.75 + 0.5 * (figures.entries - 2)


def test_order_of_entries_changes_nothing_but_the_rank(tmp_path: Path, zero_base: Path) -> None:
    def shuffled(name: str, tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))
        return noise(name, tensor).flatten()[order].reshape(tensor.shape)

    folders = {
        "one": moved(zero_base, tmp_path / "one", noise),
        "other": moved(zero_base, tmp_path / "other", shuffled),
    }
    one, other = (delta.figures.total for delta in inspect_deltas(zero_base, folders, SETTINGS).deltas)
    assert_same(one, other)


def assert_same(one: Measures, other: Measures) -> None:
    assert (one.entries, one.zeros, one.small, one.unseen) == (other.entries, other.zeros, other.small, other.unseen)
    for measure in (*SCALE_FREE, "l1", "l2", "largest", "base_l2"):
        assert getattr(one, measure) == pytest.approx(getattr(other, measure), rel=1e-9), measure


def test_a_delta_agrees_with_itself(tmp_path: Path, zero_base: Path) -> None:
    folder = moved(zero_base, tmp_path / "one", noise)
    figures = pair_of(zero_base, folder, folder).figures.total
    assert figures.cosine == pytest.approx(1, rel=1e-12)
    assert figures.opposing == 0
    for overlap in figures.overlap.values():
        assert (overlap.jaccard, overlap.conflicts) == (1, 0)
    for election in figures.ties.values():
        assert election.lost == (0, 0)


def test_a_delta_contradicts_its_negative(tmp_path: Path, zero_base: Path) -> None:
    one = moved(zero_base, tmp_path / "one", noise)
    other = moved(zero_base, tmp_path / "other", lambda name, tensor: -noise(name, tensor))
    figures = pair_of(zero_base, one, other).figures.total
    assert figures.cosine == pytest.approx(-1, rel=1e-12)
    assert figures.conflict_weight == 1
    for overlap in figures.overlap.values():
        assert (overlap.jaccard, overlap.conflict_share) == (1, 1)
    for election in figures.ties.values():
        # Of two equal magnitudes the positive one is elected: each entry is lost by one of the two.
        assert sum(election.lost) == election.both == election.conflicts


def test_a_pair_is_the_same_from_either_side(tmp_path: Path, zero_base: Path) -> None:
    one = moved(zero_base, tmp_path / "one", noise)
    other = moved(zero_base, tmp_path / "other", lambda name, tensor: noise(name + ".", tensor) * 3)
    there, back = pair_of(zero_base, one, other).figures.total, pair_of(zero_base, other, one).figures.total
    assert there.cosine == back.cosine
    for key, overlap in there.overlap.items():
        assert (overlap.first, overlap.second) == (back.overlap[key].second, back.overlap[key].first)
        assert (overlap.both, overlap.conflicts) == (back.overlap[key].both, back.overlap[key].conflicts)
    for key, election in there.ties.items():
        assert election.lost == back.ties[key].lost[::-1]
        assert election.kept == back.ties[key].kept[::-1]


def test_an_adapter_is_measured_as_the_model_that_peft_merges(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", r=3)
    model = tmp_path / "model"
    model.mkdir()
    merged = merged_by_peft(base, adapter)
    save_file({name: merged[name].clone() for name in weights(base)}, model / "model.safetensors")
    shutil.copy(base / "config.json", model)
    inspection = inspect_deltas(base, {"adapter": adapter, "model": model}, SETTINGS)
    by_name = {tensor.name: tensor.figures for tensor in inspection.delta("model").figures.tensors}
    for tensor in inspection.delta("adapter").figures.tensors:
        ours, theirs = tensor.figures, by_name[tensor.name]
        assert ours.l2 == pytest.approx(theirs.l2, rel=1e-4)
        assert ours.gini == pytest.approx(theirs.gini, abs=1e-3)
        assert ours.effective_rank is not None
        assert theirs.effective_rank is not None
        assert ours.effective_rank.value <= 3
        # Sampled rows of a matrix of rank 3: within five standard errors of its singular values.
        distance = abs(ours.effective_rank.value - theirs.effective_rank.value)
        assert distance <= 5 * theirs.effective_rank.standard_error + 1e-3
    (pair,) = inspection.pairs
    assert pair.figures.total.cosine == pytest.approx(1, abs=1e-4)


def test_subspaces_of_one_adapter_coincide_and_of_orthogonal_ones_do_not_meet(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    one = make_adapter(base, tmp_path / "one", seed=1)
    other = make_adapter(base, tmp_path / "other", seed=2)
    for pair, low, high in ((pair_of(base, one, one), 1 - 1e-6, 1 + 1e-6), (pair_of(base, one, other), 0, 0.6)):
        for tensor in pair.figures.tensors:
            subspaces = tensor.figures.subspaces
            assert subspaces is not None
            assert low <= subspaces.columns <= high
            assert low <= subspaces.rows <= high
            assert subspaces.rows_by_chance == 4 / tensor.shape[1]


@pytest.mark.parametrize("block", [1, 100, 1 << 18])
def test_blocks_of_any_size_give_the_same(
    tmp_path: Path, zero_base: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    folders = {
        "one": moved(zero_base, tmp_path / "one", noise),
        "other": moved(zero_base, tmp_path / "other", lambda name, tensor: noise(name + ".", tensor)),
    }
    whole = inspect_deltas(zero_base, folders, SETTINGS)
    monkeypatch.setattr(stream, "BLOCK", block)
    monkeypatch.setattr(stream, "CHUNK", 3 * block)
    assert_close(inspect_deltas(zero_base, folders, SETTINGS), whole)


@pytest.mark.parametrize("doubt", [0.0, 0.005, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [make_adapter, make_model])
def test_where_edges_are_guessed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Path], dtype: torch.dtype, doubt: float
) -> None:
    base = make_base(tmp_path / "base", dtype=dtype)
    folders = {name: make(base, tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other"))}
    monkeypatch.setattr(pairs, "DOUBT", doubt)
    guessed = inspect_deltas(base, folders, SETTINGS)
    monkeypatch.setattr(pairs, "MOST_KEYS", 0)
    assert inspect_deltas(base, folders, SETTINGS).pairs == guessed.pairs


def test_a_guess_counts_what_another_read_would() -> None:
    sizes = np.abs(np.random.default_rng(0).normal(0, 1e-4, 100_001)).astype(np.float32)
    # Half of them are bfloat16 numbers, which are counted apart.
    sizes[::2] = torch.from_numpy(sizes[::2].copy()).bfloat16().float().numpy()
    bits = kernels.bits_of(sizes)
    keys = sorted(set((bits[:5] + 0x8000) >> 16))
    slots = np.zeros(kernels.KEYS, np.uint32)
    slots[keys] = np.arange(1, len(keys) + 1)
    again, likely = (np.zeros((len(keys) + more) * kernels.FINE, np.uint32) for more in (1, 0))
    kernels.count_within(bits, slots, again)
    kernels.count_likely(bits, slots.astype(np.uint8), likely)
    again, likely = again.reshape(-1, kernels.FINE)[1:], likely.reshape(-1, kernels.FINE)
    assert again[:, kernels.FINE // 2].all()
    assert not likely[:, kernels.FINE // 2].any()
    again[:, kernels.FINE // 2] = 0
    assert (again == likely).all()


def test_differences_of_bfloat16_are_those_of_fp32() -> None:
    """Of every bit pattern with some other, NaN and infinity among them."""
    patterns = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    other = patterns[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    wide, change = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.float32)
    kernels.widen(other.view(torch.int16).numpy().view(np.uint16), wide.view(np.uint32))
    kernels.subtract(patterns.view(torch.int16).numpy().view(np.uint16), wide, change)
    expected = patterns.float() - other.float()
    torch.testing.assert_close(torch.from_numpy(change), expected, rtol=0, atol=0, equal_nan=True)


def test_kernels_compile_where_nothing_can_be_kept() -> None:
    script = (
        "import numpy as np, numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
        "from paft_plugin.inspection import kernels; print(kernels.largest(np.arange(5, dtype=np.uint32)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "4"


def assert_close(one: Inspection, other: Inspection) -> None:
    """Every number of two inspections."""

    def numbers(content: object, place: str = "") -> dict[str, object]:
        if isinstance(content, dict):
            items = ((f"{place}.{key}", value) for key, value in content.items())
        elif isinstance(content, list):
            items = ((f"{place}[{index}]", value) for index, value in enumerate(content))
        else:
            return {place: content}
        return dict(itertools.chain.from_iterable(numbers(value, key).items() for key, value in items))

    left, right = (numbers(json.loads(json.dumps(each.content()))) for each in (one, other))
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, float):
            assert value == pytest.approx(right[key], rel=1e-6), key
        else:
            assert value == right[key], key


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_order_statistics_keep_their_bound(share: float, spread: float) -> None:
    """Log-normal magnitudes from nearly equal to very unequal, none of them a bfloat16 number."""
    sizes = torch.from_numpy(np.random.default_rng(0).lognormal(-8, spread, 50_000)).float()
    counts = np.zeros((kernels.LANES, kernels.KEYS), np.uint32)
    kernels.count_keys(kernels.bits_of(sizes.numpy()), counts)
    found = Magnitudes(counts.sum(axis=0, dtype=np.int64), SIZES)
    assert found.gini() == pytest.approx(brute.gini(sizes), abs=2**-8)
    assert found.top_share(share) == pytest.approx(brute.top_share(sizes, share), rel=2**-8)


def test_order_statistics_of_bfloat16_magnitudes_are_exact() -> None:
    sizes = torch.from_numpy(np.random.default_rng(0).lognormal(-8, 1, 50_000)).bfloat16().float()
    counts = np.zeros((kernels.LANES, kernels.KEYS), np.uint32)
    kernels.count_keys(kernels.bits_of(sizes.numpy()), counts)
    found = Magnitudes(counts.sum(axis=0, dtype=np.int64), SIZES)
    assert found.gini() == pytest.approx(brute.gini(sizes), rel=1e-12)
    assert found.top_share(0.01) == pytest.approx(brute.top_share(sizes, 0.01), rel=1e-12)


def test_rounding_hides_what_torch_rounds_away() -> None:
    torch.manual_seed(0)
    base = torch.cat([torch.randn(10_000) * 0.02, torch.zeros(10), -torch.zeros(10), torch.tensor([1.0, 1.0])])
    change = torch.cat([torch.randn(10_000) * 1e-4, torch.zeros(20), torch.tensor([2**-9 + 2**-12, 2**-8])])
    for kept in (base, base.bfloat16().float()):
        bits = (kernels.bits_of(tensor.numpy()) for tensor in (kept, kept + change))
        assert kernels.hidden_by_bfloat16(*bits) == int(((kept + change).bfloat16() == kept.bfloat16()).sum())
