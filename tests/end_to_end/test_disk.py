"""The disk that trainings are expected to take, beside what real ones leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin import demo
from paft_plugin.pipeline.estimate.disk import SMALL, estimate_disk
from tests.end_to_end.runs import LORA, axolotl_train

pytestmark = pytest.mark.slow

BASE = Path(demo.__file__).parent / "base"
SAVES = 3  # two checkpoints and the end


@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
def test_checkpoints_take_what_is_expected(config: Callable[..., Path], kind: dict[str, Any]) -> None:
    """On the demo's base, whose weights outweigh the small files that each save has."""
    file = config("run", **kind, base_model=str(BASE), num_epochs=3, save_strategy="epoch", save_total_limit=2)
    result = axolotl_train(file)
    assert result.returncode == 0, result.stdout + result.stderr
    content = yaml.safe_load(file.read_text())
    folder = Path(content["output_dir"])
    assert len(list(folder.glob("checkpoint-*"))) == 2
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    nothing = estimate_disk({**content, "save_strategy": "no"}, BASE)
    checkpoint = estimate_disk({**content, "max_steps": 1, "save_steps": 1}, BASE) - nothing
    expected = nothing + 2 * checkpoint
    assert expected + checkpoint == estimate_disk(content, BASE), "and one that is written while the oldest goes"
    assert expected - SAVES * SMALL <= taken <= expected
