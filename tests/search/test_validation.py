"""Never the test set: what must be refused is, what is fine is scored on its validation items, and bad tasks are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.search.validation import open_goals, split_problems
from tests.evaluation.items import make_items, make_task, write_rows

VALIDATION = {"validation_split": "validation"}


def files(**splits: str) -> dict[str, Any]:
    return {"dataset_kwargs": {"data_files": splits}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"test_split": "test"}, "has only test items (test_split: test)"),
        ({}, "has no validation_split"),
        ({"validation_split": "test"}, "its validation_split is 'test'"),
        ({"validation_split": "test[:100]"}, "its validation_split is 'test[:100]'"),
        ({"validation_split": "x", "test_split": "x"}, "its validation_split is 'x'"),
        (
            {**VALIDATION, **files(validation="data/test/skill.jsonl")},
            "in data/test/skill.jsonl, which is named like test",
        ),
        (
            {**VALIDATION, **files(validation="data/skill_test.jsonl")},
            "in data/skill_test.jsonl, which is named like test",
        ),
        ({**VALIDATION, "dataset_kwargs": {"data_files": "test.jsonl"}}, "in test.jsonl, which is named like test"),
        ({**VALIDATION, "test_split": "t", "fewshot_split": "t"}, "takes its few-shot examples from test items"),
        ({**VALIDATION, "fewshot_config": {"split": "test"}}, "takes its few-shot examples from test items"),
    ],
)
def test_test_items_are_refused(config: dict[str, Any], message: str) -> None:
    (problem,) = split_problems(config)
    assert problem.startswith((message, f"its validation items are {message}"))


@pytest.mark.parametrize(
    "config",
    [
        VALIDATION,
        {**VALIDATION, "test_split": "test", "fewshot_split": "train"},
        {"validation_split": "test_dev"},
        {**VALIDATION, **files(validation="test/data/skill.jsonl", test="data/test.jsonl")},
        {**VALIDATION, **files(validation="test/validation.jsonl")},
        {**VALIDATION, **files(validation="my_test_run/skill.jsonl")},
        {**VALIDATION, **files(validation="latest/contest.jsonl")},
        {**VALIDATION, **files(validation="https://example.org/dev.jsonl")},
    ],
)
def test_validation_items_are_not(config: dict[str, Any]) -> None:
    assert split_problems(config) == []


def test_a_task_with_both_splits_is_scored_on_its_validation_items(tmp_path: Path) -> None:
    validation, test = make_items(1, 5), make_items(2, 7)
    write_rows(tmp_path / "validation.jsonl", validation)
    write_rows(tmp_path / "test.jsonl", test)
    data = {split: str(tmp_path / f"{split}.jsonl") for split in ("validation", "test")}
    kwargs = {"data_files": data, "cache_dir": str(tmp_path / "cache")}
    make_task(tmp_path / "tasks", "both", Path(), test_split="test", dataset_kwargs=kwargs)
    _, tasks = open_goals({"both": MeasureConfig()}, tmp_path / "tasks")
    assert list(tasks["both"].parts["both"].eval_docs) == validation


def test_an_item_of_the_judging_tasks_is_refused_however_it_is_named(world: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "mine.jsonl", [*make_items(10)[:3], *make_items(99, 5)])  # 10: the test items of `first`
    make_task(tmp_path / "tasks", "mine", tmp_path / "mine.jsonl")
    open_goals({"mine": MeasureConfig()}, tmp_path / "tasks")
    with pytest.raises(PaftError, match=r"mine: 3 of its 8 items are also in first of .*test_tasks"):
        open_goals({"mine": MeasureConfig()}, tmp_path / "tasks", world / "test_tasks")


def test_open_choices_are_settled_by_the_task(world: Path) -> None:
    (goal,), _ = open_goals({"first": MeasureConfig()}, world / "tasks", world / "test_tasks")
    assert (goal.name, goal.task, goal.key, goal.direction) == ("first", "first", "acc,none", "maximize")
    (goal,), _ = open_goals({"first": MeasureConfig(name="x", direction="minimize")}, world / "tasks")
    assert (goal.name, goal.direction) == ("x", "minimize")


def test_a_group_is_not_searched_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "items.jsonl", make_items(1, 5))
    make_task(tmp_path / "tasks", "one", tmp_path / "items.jsonl")
    (tmp_path / "tasks" / "group.yaml").write_text(
        "group: group\ntask: [one]\naggregate_metric_list: [{metric: acc}]\n"
    )
    with pytest.raises(PaftError, match=r"^search\.objectives\.group: a group, not a task that is one YAML file\."):
        open_goals({"group": MeasureConfig()}, tmp_path / "tasks")


def test_bad_tasks_are_one_line_each_and_all_at_once(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    write_rows(items, make_items(1, 5))
    two = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    make_task(tmp_path / "tasks", "two", items, metric_list=two)
    make_task(tmp_path / "tasks", "gone", tmp_path / "gone.jsonl")
    make_task(tmp_path / "tasks", "template", items, doc_to_text="{{ prompt ")
    make_task(tmp_path / "tasks", "tested", items, split="test")
    objectives = {name: MeasureConfig() for name in ("two", "gone", "template", "tested", "twp")}
    with pytest.raises(PaftError) as caught:
        open_goals(objectives, tmp_path / "tasks")
    starts = (
        "search.objectives.two.metric: must be named. It has acc, acc_norm.",
        "search.objectives.gone: cannot be opened: ",
        "search.objectives.template: cannot be opened: ",
        "search.objectives.tested: has only test items",
        f"search.objectives.twp: no such task in {tmp_path / 'tasks'} nor of lm-eval. Did you mean two?",
    )
    assert len(caught.value.problems) == len(starts)
    for problem, start in zip(caught.value.problems, starts, strict=True):
        assert problem.startswith(start)
        assert "\n" not in problem
