"""What a training writes, estimated from its axolotl config and its base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft_plugin.pipeline.memory import dtype_bytes, optimizer_bytes, trained_shapes
from paft_plugin.pipeline.shapes import Shapes, count, weight_shapes

SMALL = 2 << 20
"""Bytes for the small files of each save: state, configs, proof."""
_KEPT = 4  # axolotl's save_total_limit when the config names none
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "chat_template*", "added_tokens.json")


def estimate_disk(config: Mapping[str, Any], base: Path) -> int:
    """Bytes that the training writes into its output folder: what it ends with, and its checkpoints; 0: unknown.

    Checkpoints hold the optimizer's states, and one more than are kept lies there while the oldest is deleted. The prepared data
    set is not in it.
    """
    shapes = weight_shapes(base)
    if not shapes:
        return 0
    number = 4 if config.get("adapter") else dtype_bytes(config)
    trains = trained_shapes(config, shapes)
    tokenizer = sum(file.stat().st_size for pattern in _TOKENIZER for file in base.glob(pattern))
    saved = number * count(trains) + tokenizer + SMALL
    checkpoint = saved + round(_optimizer(config, trains, number))
    stray = dtype_bytes(config) * count(shapes) if config.get("adapter") and config.get("rl") else 0
    return saved + stray + _checkpoints(config) * checkpoint


def _optimizer(config: Mapping[str, Any], trains: Shapes, number: int) -> float:
    """A paged optimizer's states are written like any other's."""
    name = str(config.get("optimizer") or "").replace("paged_", "")
    return optimizer_bytes({**config, "optimizer": name}, trains, number)


def _checkpoints(config: Mapping[str, Any]) -> int:
    """How many lie there at once, at most."""
    if config.get("save_strategy") == "no":
        return 0
    most = int(config.get("save_total_limit") or _KEPT) + 1
    steps, every = config.get("max_steps"), config.get("save_steps")
    if isinstance(steps, int) and isinstance(every, int) and every > 0 and steps > 0:
        return min(most, -(-steps // every))
    return most
