"""The disk that trainings are expected to take, beside what real ones leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.pipeline.disk import estimate_disk

from .conftest import LORA, axolotl_train

pytestmark = pytest.mark.slow

SLACK = 12 << 20  # bytes: what the estimate allows for small files, times the number of saves


@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
def test_checkpoints_take_no_more_than_expected(base: Path, config: Callable[..., Path], kind: dict[str, Any]) -> None:
    file = config("run", **kind, save_strategy="epoch", save_total_limit=2)
    result = axolotl_train(file)
    assert result.returncode == 0, result.stdout + result.stderr
    content = yaml.safe_load(file.read_text())
    folder = Path(content["output_dir"])
    assert len(list(folder.glob("checkpoint-*"))) == 2
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    expected = estimate_disk(content, base)
    one = estimate_disk({**content, "max_steps": 1, "save_steps": 1}, base) - estimate_disk(
        {**content, "save_strategy": "no"}, base
    )
    assert taken <= expected - one + SLACK, "the one that is written while the oldest goes is not there any more"
    assert expected - one - SLACK <= taken
