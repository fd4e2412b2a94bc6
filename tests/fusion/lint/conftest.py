"""Branches of both kinds on one small base, and the bench on which recipes of them are spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.deltas.builders import make_adapter, make_base, make_tokenizer
from tests.fusion.deltas import make_pair, prove
from tests.fusion.lint.bench import Bench


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lint")
    adapters = folder / "adapters"
    make_tokenizer(make_base(adapters / "base", dtype=torch.bfloat16))
    for name, seed in (("sft", 1), ("preference", 2)):
        make_adapter(adapters / "base", adapters / name, seed=seed, size=2e-4)
    prove(adapters / "sft")
    return {
        "sparse": make_pair(folder / "sparse", share=0.05),
        "dense": make_pair(folder / "dense", share=1.0),
        "adapters": adapters,
    }


@pytest.fixture
def bench(pairs: dict[str, Path], tmp_path: Path) -> Bench:
    return Bench(own=tmp_path, **pairs)


@pytest.fixture
def names(bench: Bench) -> Callable[..., set[str]]:
    def of(*arguments: Any, **options: Any) -> set[str]:
        return {finding.name for finding in bench.lint(*arguments, **options)}

    return of
