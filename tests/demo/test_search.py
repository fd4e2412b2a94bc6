"""A run of the demo can be searched: its `paft.yml` is valid, and what it scores is validation items only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from paft_plugin.demo.configs import QUICK_DEMO
from paft_plugin.demo.data import write_tasks
from paft_plugin.demo.run import write_inputs
from paft_plugin.errors import PaftError
from paft_plugin.pipeline.arms import search_request
from paft_plugin.search.validation import open_goals


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_inputs(QUICK_DEMO, tmp_path)
    for folder in ("branches/sft-l1", "branches/dpo"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_it_is_read_and_scores_the_validation_items(run_dir: Path) -> None:
    request = search_request(run_dir / "paft.yml")
    search = request.search
    goals, tasks = open_goals(search.objectives, search.tasks, search.test_tasks)
    assert [goal.name for goal in goals] == ["skill", "words", "untouched", "style"]
    assert request.output_dir == run_dir
    assert [branch.path for branch in request.branches] == [run_dir / "branches" / name for name in ("sft-l1", "dpo")]
    for goal in goals:
        items = (run_dir / "data" / "validation" / f"{goal.name}.jsonl").read_text().splitlines()
        assert list(tasks[goal.task].parts[goal.task].eval_docs) == [json.loads(line) for line in items]


def test_its_test_items_cannot_be_searched_on(run_dir: Path) -> None:
    content = yaml.safe_load((run_dir / "paft.yml").read_text())
    content["search"] |= {"tasks": "evaluation/tasks", "test_tasks": None}
    (run_dir / "paft.yml").write_text(yaml.safe_dump(content))
    search = search_request(run_dir / "paft.yml").search
    with pytest.raises(PaftError) as caught:
        open_goals(search.objectives, search.tasks)
    assert len(caught.value.problems) == 4
    assert all("has only test items" in problem for problem in caught.value.problems)

    # Nor by calling them validation items.
    write_tasks(run_dir / "evaluation" / "disguised", run_dir / "data" / "test", "validation")
    with pytest.raises(PaftError, match="named like test items"):
        open_goals(search.objectives, run_dir / "evaluation" / "disguised")
    (run_dir / "data" / "test").rename(run_dir / "data" / "harmless")
    write_tasks(run_dir / "evaluation" / "disguised", run_dir / "data" / "harmless", "validation")
    write_tasks(run_dir / "evaluation" / "tasks", run_dir / "data" / "harmless")
    with pytest.raises(PaftError, match=r"100 of its 100 items are also in paft_"):
        open_goals(search.objectives, run_dir / "evaluation" / "disguised", run_dir / "evaluation" / "tasks")


def test_branches_that_are_not_trained_are_named(run_dir: Path) -> None:
    (run_dir / "branches" / "dpo").rmdir()
    with pytest.raises(PaftError, match=r"the branch dpo is not trained yet .* Run `axolotl paft run"):
        search_request(run_dir / "paft.yml")
