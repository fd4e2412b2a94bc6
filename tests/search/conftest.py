"""A tiny base with two adapters, and two tasks of multiple choice whose scores the merge sways."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deltas.builders import make_adapter, make_model
from tests.evaluation.conftest import build_model, write_rows

ITEMS = 24
Write = Callable[..., Path]


def make_items(seed: int, count: int = ITEMS) -> list[dict[str, Any]]:
    """Prompts with two answers of the same length, so that a random model is of two minds."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice("abcdefghij") for _ in range(4))

    return [{"prompt": f"copy {word()}", "answers": [word(), word()], "right": rng.randrange(2)} for _ in range(count)]


def make_task(folder: Path, name: str, items: Path, split: str = "validation", **more: Any) -> None:
    """One lm-eval task on a file of items; `more` goes into it as it is."""
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(items)}, "cache_dir": str(folder.with_name("cache"))},
        f"{split}_split": split,
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "answers",
        "doc_to_target": "right",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


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
