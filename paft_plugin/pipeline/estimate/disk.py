"""Whether the disk has room for a run, and lets us write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft_plugin.deltas.tokenizer import TOKENIZER_FILES
from paft_plugin.errors import Findings
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.estimate.memory import dtype_bytes, optimizer_bytes, trained_shapes
from paft_plugin.pipeline.estimate.shapes import Shapes, count, weight_shapes
from paft_plugin.runner.logs import size

SMALL = 2 << 20
"""Bytes for the small files of each save: state, configs, proof."""
_KEPT = 4  # axolotl's save_total_limit when the config names none


def estimate_disk(config: Mapping[str, Any], base: Path) -> int:
    """Bytes that the training writes into its output folder: what it ends with, and its checkpoints; 0: unknown, or a setting is
    of a wrong kind, which axolotl names.

    Checkpoints hold the optimizer's states, and one more than are kept lies there while the oldest is deleted. The prepared data
    set is not in it.
    """
    shapes = weight_shapes(base)
    try:
        return _estimated(config, base, shapes) if shapes else 0
    except (TypeError, ValueError):
        return 0


def _estimated(config: Mapping[str, Any], base: Path, shapes: Shapes) -> int:
    number = 4 if config.get("adapter") else dtype_bytes(config)
    trains = trained_shapes(config, shapes)
    tokenizer = sum(file.stat().st_size for pattern in TOKENIZER_FILES for file in base.glob(pattern))
    saved = number * count(trains) + tokenizer + SMALL
    # A paged optimizer's states are written like any other's.
    optimizer = {**config, "optimizer": str(config.get("optimizer") or "").replace("paged_", "")}
    checkpoint = saved + round(optimizer_bytes(optimizer, trains, number))
    stray = dtype_bytes(config) * count(shapes) if config.get("adapter") and config.get("rl") else 0
    return saved + stray + _checkpoints(config) * checkpoint


def _checkpoints(config: Mapping[str, Any]) -> int:
    """How many lie there at once, at most."""
    if config.get("save_strategy") == "no":
        return 0
    most = int(config.get("save_total_limit") or _KEPT) + 1
    steps, every = config.get("max_steps"), config.get("save_steps")
    if isinstance(steps, int) and isinstance(every, int) and every > 0 and steps > 0:
        return min(most, -(-steps // every))
    return most


MARGIN = 64 << 20
"""Logs, prepared data, scores, reports."""


def check_disk(setup: Setup) -> Findings:
    """Free space of the output folder's disk against what the run writes, and whether it may be written to."""
    findings = Findings()
    if not os.access(_there(setup.run_dir), os.W_OK | os.X_OK):
        findings.problem(
            f"output_dir: {setup.run_dir} cannot be written to. Change its rights, or choose another folder."
        )
    wanted, free = still_needed(setup), free_bytes(setup.run_dir)
    if wanted > free:
        findings.problem(
            f"output_dir: the run writes about {size(wanted)}, and the disk of {setup.run_dir} has {size(free)} free. "
            "Make room, choose another disk, name fewer arms, or lower save_total_limit."
        )
    return findings


def free_bytes(run_dir: Path) -> int:
    """What is free on the disk of a folder that may not be there yet."""
    return shutil.disk_usage(_there(run_dir)).free


def _there(run_dir: Path) -> Path:
    return next(place for place in (run_dir, *run_dir.parents) if place.exists())


def needed_bytes(setup: Setup) -> int:
    """About what a run writes, in bytes: branches with their checkpoints, fused models, logs."""
    model = sum(file.stat().st_size for file in setup.base.glob("*.safetensors"))
    merged = sum(not arm.in_memory for kind in ("fused", "disjoint") for arm in setup.of_kind(kind))
    merged += sum(len(arm.order) for arm in setup.of_kind("sequential"))
    merged += sum(branch.control is not None and not branch.is_adapter for branch in setup.needed)
    trainings = [*setup.trainings, *setup.continued]
    # Where nothing is known of the model's layers, a training is taken for one of a whole model.
    total = MARGIN + sum(estimate_disk(branch.content, setup.base) or model for branch in trainings)
    return total + model * merged


def still_needed(setup: Setup) -> int:
    """About what of that an interrupted run has not written yet."""
    return max(0, needed_bytes(setup) - held(setup.run_dir))


def held(folder: Path) -> int:
    """The bytes of all files in a folder, such as those that an earlier run has written already."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) if folder.is_dir() else 0
