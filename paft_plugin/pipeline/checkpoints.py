"""Checkpoints of an interrupted training: axolotl resumes from the last one, whether it was written to the end or not."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

_STATE = "trainer_state.json"  # the Trainer writes it last


def drop_torn(output_dir: Path) -> list[Path]:
    """Remove the checkpoints in `output_dir` that a kill or a power cut left half-written; returns their folders."""
    torn = [folder for folder in sorted(output_dir.glob("checkpoint-*")) if folder.is_dir() and not is_whole(folder)]
    for folder in torn:
        shutil.rmtree(folder)
    return torn


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from: its state is there, and no file of it is cut short or garbled."""
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        return all(_is_whole_file(path) for path in files)
    except (OSError, ValueError):
        return False


def _is_whole_file(path: Path) -> bool:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):  # its header says how long the file must be
                return True
        except SafetensorError:
            return False
    if path.suffix in (".pt", ".pth", ".bin"):
        try:
            with zipfile.ZipFile(path) as archive:  # what torch.save writes, with a checksum of each part
                return archive.testzip() is None
        except zipfile.BadZipFile:
            return False
    return True
