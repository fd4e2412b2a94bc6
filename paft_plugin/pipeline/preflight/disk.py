"""Whether the disk has room for a run, and lets us write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path

from paft_plugin.deltas.findings import Findings
from paft_plugin.errors import PaftError
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.logs import size
from paft_plugin.pipeline.setup import BASE, SEQUENTIAL, Setup

CHECKPOINTS = 4
"""What axolotl keeps without save_total_limit."""
MARGIN = 64 << 20
"""Logs, prepared data, scores, reports."""
ADAPTER_BYTES = 4
"""Of each entry of A and B, which are kept in fp32; the optimizer has two moments of the same size."""
MOMENTS_BYTES = 8
DEFAULT_RANK = 8


def check_disk(setup: Setup) -> Findings:
    """Free space of the output folder's disk against what the run writes, and whether it may be written to."""
    findings = Findings()
    folder = next(place for place in (setup.run_dir, *setup.run_dir.parents) if place.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        findings.add(
            [f"output_dir: {setup.run_dir} cannot be written to. Change its rights, or choose another folder."]
        )
    try:
        needed = needed_bytes(setup)
    except PaftError as error:
        findings.add(error.problems)
        return findings
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
    """About what a run writes, in bytes: branches with their checkpoints, fused models, logs.

    Raises:
        PaftError: The base's weights cannot be read.
    """
    weights = list(shapes(setup.base))
    model = sum(count for _, _, count in weights)
    trainings = [setup.branches[name] for name in setup.needed if setup.branches[name].trained is None]
    if SEQUENTIAL in setup.arms:
        trainings.append(setup.branches[setup.preference])
    total = MARGIN + sum(_training(branch, weights, model) for branch in trainings)
    wholes = [arm for arm in setup.arms if arm != BASE and arm not in setup.branches and arm != SEQUENTIAL]
    return total + model * (len(wholes) + 2 * (SEQUENTIAL in setup.arms))


def _training(branch: Branch, weights: list[tuple[str, list[int], int]], model: int) -> int:
    """A branch and its checkpoints, with the optimizer's state."""
    content = branch.content
    if branch.is_adapter:
        rank = int(content.get("lora_r") or DEFAULT_RANK)
        entries = sum(rank * sum(shape) for name, shape, _ in weights if len(shape) == 2 and "embed" not in name)
        own, moments = entries * ADAPTER_BYTES, entries * MOMENTS_BYTES
    else:
        own, moments = model, sum(prod(shape) for _, shape, _ in weights) * MOMENTS_BYTES
    if str(content.get("save_strategy", "")).lower() in ("no", "none", "false"):
        return own
    checkpoint = own if content.get("save_only_model") else own + moments
    return own + checkpoint * int(content.get("save_total_limit") or CHECKPOINTS)


def shapes(base: Path) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and bytes of each tensor, from the headers of safetensors files."""
    for file in sorted(base.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                yield name, list(entry["shape"]), end - start
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise PaftError(f"{file}: no valid safetensors ({error}). Copy or download it again.") from None


def _held(folder: Path) -> int:
    """What an earlier run there has written already."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) if folder.is_dir() else 0
