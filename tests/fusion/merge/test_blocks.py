"""A tensor of many branches merged in blocks of rows is the tensor that mergekit merges as a whole, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paft_plugin.fusion.merge import blocks
from tests.deltas.builders import make_adapter
from tests.fusion.merge.tools import METHODS, branch, by_mergekit, content, ours, reference, save
from tests.fusion.world import World

BRANCHES = ("sft", "dpo", "sft-full", "dpo-full")
IN_BLOCKS = [name for name in METHODS if name not in ("slerp", "nearswap", "arcee_fusion", "nuslerp")]


@pytest.mark.parametrize("method", IN_BLOCKS)
def test_blocks_are_the_whole(method: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those methods that cannot be cut give the same too: they are merged as wholes."""
    file = save(content(method, world["base"], *(branch(world, name) for name in BRANCHES)), tmp_path / "r.yml")
    whole = ours(file)
    seen = _small_blocks(monkeypatch)
    cut = ours(file)
    assert bool(seen) == (method not in ("multislerp", "karcher", "sce", "model_stock", "ramplus_tl"))
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della_linear", "breadcrumbs", "linear"])
def test_blocks_are_what_mergekit_merges(
    method: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = make_adapter(world["base"], tmp_path / "odd", seed=8, target_modules=["q_proj"], modules_to_save=["lm_head"])
    branches = [branch(world, "sft"), branch(world, "dpo-full"), reference(world["base"], odd)]
    file = save(content(method, world["base"], *branches, out_dtype="bfloat16"), tmp_path / "r.yml")
    _small_blocks(monkeypatch)
    merged, plain = ours(file), by_mergekit(file, tmp_path)
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.items())


def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Blocks of eight rows; returns what is merged in them."""
    seen: list[Any] = []
    run = blocks.BlockedMerge.run
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(blocks.BlockedMerge, "run", lambda self, *more: [seen.append(self), run(self, *more)][1])
    return seen
