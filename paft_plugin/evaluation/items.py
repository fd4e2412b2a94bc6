"""Checks of what lm-eval will score: the task files are there, and every item has the fields that its measure needs."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.evaluation.arms import MEASURES


def task_problems(tasks: Path) -> list[str]:
    """What is wrong with a folder of lm-eval tasks and the items that they point at, one line each."""
    if not tasks.is_dir():
        return [f"{tasks} isn't a folder of lm-eval tasks"]
    problems = []
    for measure in MEASURES:
        file = tasks / f"{measure.task}.yaml"
        if not file.is_file():
            problems.append(f"no lm-eval task {file}")
            continue
        for items in _item_files(file):
            problem = _item_problem(items, measure.fields)
            problems += [problem] if problem else []
    return problems


def _item_files(task: Path) -> list[Path]:
    """The local JSON Lines files of a task."""
    kwargs: dict[str, Any] = yaml.safe_load(task.read_text(encoding="utf-8")).get("dataset_kwargs") or {}
    named = kwargs.get("data_files") or {}
    patterns = named.values() if isinstance(named, dict) else [named]
    # `datasets` takes patterns, so a path's special characters are escaped there; Path.glob refuses absolute patterns.
    return [Path(found) for pattern in patterns for found in (glob.glob(str(pattern)) or [str(pattern)])]  # noqa: PTH207


def _item_problem(items: Path, fields: Sequence[str]) -> str | None:
    """The first thing wrong with a file of items."""
    if not items.is_file():
        return f"no scored items in {items}: write them again"
    for number, line in enumerate(items.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            return f"{items}, line {number}: not JSON ({error}): write the items again"
        missing = [field for field in fields if not isinstance(row, dict) or row.get(field) is None]
        if missing:
            return f"{items}, line {number}: no field {missing[0]!r}: write the items again"
    return None
