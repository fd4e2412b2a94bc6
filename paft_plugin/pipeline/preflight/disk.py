"""Whether the disk has room for a run, and lets us write."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from paft_plugin.deltas.findings import Findings
from paft_plugin.pipeline.disk import estimate_disk
from paft_plugin.pipeline.logs import size
from paft_plugin.pipeline.setup import BASE, SEQUENTIAL, Setup

MARGIN = 64 << 20
"""Logs, prepared data, scores, reports."""


def check_disk(setup: Setup) -> Findings:
    """Free space of the output folder's disk against what the run writes, and whether it may be written to."""
    findings = Findings()
    folder = next(place for place in (setup.run_dir, *setup.run_dir.parents) if place.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        findings.add(
            [f"output_dir: {setup.run_dir} cannot be written to. Change its rights, or choose another folder."]
        )
    needed = needed_bytes(setup)
    held = _held(setup.run_dir)
    free = shutil.disk_usage(folder).free
    if needed - held > free:
        findings.add(
            [
                f"output_dir: the run writes about {size(needed - held)}, and the disk of {setup.run_dir} has {size(free)} free. "
                "Make room, choose another disk, name fewer arms, or lower save_total_limit."
            ]
        )
    return findings


def needed_bytes(setup: Setup) -> int:
    """About what a run writes, in bytes: branches with their checkpoints, fused models, logs."""
    model = sum(file.stat().st_size for file in setup.base.glob("*.safetensors"))
    trainings = [setup.branches[name] for name in setup.needed if setup.branches[name].trained is None]
    if SEQUENTIAL in setup.arms:
        trainings.append(setup.branches[setup.preference])
    # Where nothing is known of the model's layers, a training is taken for one of a whole model.
    total = MARGIN + sum(estimate_disk(branch.content, setup.base) or model for branch in trainings)
    wholes = [arm for arm in setup.arms if arm != BASE and arm not in setup.branches and arm != SEQUENTIAL]
    return total + model * (len(wholes) + 2 * (SEQUENTIAL in setup.arms))


def _held(folder: Path) -> int:
    """What an earlier run there has written already."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) if folder.is_dir() else 0
