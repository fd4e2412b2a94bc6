"""Two adapters of different kinds on one base, and fused adapters from recipes on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.fusion.adapter import FusedAdapter, write_adapter
from paft_plugin.fusion.merge import open_fusion
from tests.deltas.builders import make_adapter, make_base, make_tokenizer
from tests.fusion.adapter.branches import Branches, Write


@pytest.fixture(scope="session")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Branches:
    """A Llama with q_proj in both branches, k_proj and an rsLoRA scale in one, patterns of rank and alpha in the other."""
    folder = tmp_path_factory.mktemp("bran ches")
    base = make_base(folder / "base")
    make_tokenizer(base)
    patterns = {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 20}}
    make_adapter(base, folder / "sft", seed=1, **patterns)
    make_adapter(base, folder / "dpo", seed=2, r=3, use_rslora=True, target_modules=["q_proj", "o_proj", "up_proj"])
    make_adapter(base, folder / "zero", seed=3, size=0.0)
    return Branches(folder)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the fused adapter of a recipe to a new folder."""

    def run(recipe: Path, rank: int | None = None, max_error: float = 0.05) -> tuple[Path, FusedAdapter]:
        out = tmp_path / f"fused {len(list(tmp_path.iterdir()))}"
        return out, write_adapter(open_fusion(recipe, device="cpu"), out, rank, max_error)

    return run
