"""A tiny random base, and the shipped tasks on hand-made items."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from paft_plugin.demo.data import write_tasks
from tests.evaluation.items import PREFERENCE, RETAINED, SKILL, STYLE, make_preference_task, write_rows
from tests.evaluation.models import build_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped tasks, pointed at hand-made items, in a folder whose name has what paths must not trip over."""
    run = tmp_path_factory.mktemp("run [1] 'of' {2}")
    items = run / "items"
    write_rows(items / "skill.jsonl", [{"task": "add", "prompt": p, "answer": a} for p, a in SKILL])
    write_rows(items / "words.jsonl", [{"task": t, "prompt": p, "answer": a} for t, p, a in RETAINED])
    write_rows(items / "style.jsonl", [{"task": t, "prompt": p, "answer": a} for t, p, a in STYLE])
    write_rows(
        items / "preference.jsonl",
        [{"task": p.split()[0], "prompt": p, "chosen": c, "rejected": r} for p, c, r in PREFERENCE],
    )
    write_tasks(run / "tasks", items)
    make_preference_task(run / "tasks", Path(glob.escape(str(items / "preference.jsonl"))))
    return run / "tasks"
