"""A tiny base with two adapters, and two tasks of multiple choice whose scores the merge sways."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deltas.builders import make_adapter, make_model
from tests.evaluation.items import make_items, make_task, write_rows
from tests.evaluation.models import build_model

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, `sft`, `preference`, `whole` (a model), `tasks` and `test_tasks`, where a path parser would stumble."""
    folder = tmp_path_factory.mktemp("se arch+x@y?z%20")
    base = build_model(folder / "base")
    for name, seed in (("sft", 1), ("preference", 2)):
        make_adapter(base, folder / name, seed=seed, size=0.15)
    make_model(base, folder / "whole", seed=3, size=0.1)
    for seed, name in enumerate(("first", "second")):
        for split, tasks in (("validation", "tasks"), ("test", "test_tasks")):
            items = folder / "items" / split / f"{name}.jsonl"
            write_rows(items, make_items(seed + 10 * (split == "test")))
            # `datasets` would take the brackets and the `?` of a path for a pattern; the demo's tasks escape them.
            make_task(folder / tasks, name, Path(str(items).replace("?", "[?]")), split)
    return folder


@pytest.fixture
def paft_yml(world: Path, tmp_path: Path) -> Write:
    """Write a `paft.yml` of the world with its output in a new folder; keyword arguments go under `search:`."""
    count = itertools.count()

    def write(output: Path | None = None, objectives: Any = ("first", "second"), **search: Any) -> Path:
        file = tmp_path / f"paft-{next(count)}.yml"
        content = {
            "base": str(world / "base"),
            "sft": str(world / "sft"),
            "preference": str(world / "preference"),
            "output_dir": str(output or tmp_path / "output"),
            "search": {
                "tasks": str(world / "tasks"),
                "test_tasks": str(world / "test_tasks"),
                "objectives": list(objectives) if isinstance(objectives, tuple) else objectives,
                "trials": 9,
                "device": "cpu",
                **search,
            },
        }
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return file

    return write
