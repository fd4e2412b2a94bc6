"""The tasks that a search may score: lm-eval's, on their validation items and on nothing else.

lm-eval scores a task's `test_split` wherever it has one. A search that did so would choose by the very items that are to judge
its result. So every task is opened without its test split, and refused if no other is left to score, if what it calls
validation is named like test items, or if any of its items is among those of the tasks that will judge the result.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.search.config import Objective

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

TEST = re.compile(r"(^|[^a-z])test(s|ing)?([^a-z]|$)", re.IGNORECASE)
TEST_FOLDER = re.compile(r"test(s|ing)?([_-]?(set|split|data|items?))?", re.IGNORECASE)
VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|dev|development)([^a-z]|$)", re.IGNORECASE)
WHY = "A search that chose by test items could not be judged by them any more"


@dataclass(frozen=True)
class Goal:
    """One objective, with everything that was left open settled by its task."""

    name: str
    task: str
    metric: str
    """As lm-eval reports it: `metric,filter`."""
    maximize: bool

    @property
    def direction(self) -> str:
        """In Optuna's word."""
        return "maximize" if self.maximize else "minimize"


def open_goals(
    objectives: Mapping[str, Objective], folder: Path | None, test_folder: Path | None = None
) -> tuple[list[Goal], dict[str, ConfigurableTask]]:
    """Open the tasks of all objectives on their validation items.

    Args:
        objectives: Task → which of its numbers counts.
        folder: Of lm-eval task files; None for lm-eval's own tasks.
        test_folder: Of the task files that will judge the result, if there are any.

    Returns:
        The objectives in order, and lm-eval's tasks by name.

    Raises:
        PaftError: All that is wrong: an unknown task, metric or filter; a task without validation items; test items.
    """
    index = _task_index(folder)
    goals: list[Goal] = []
    tasks: dict[str, ConfigurableTask] = {}
    problems: list[str] = []
    for name, objective in objectives.items():
        try:
            tasks[name] = _open(name, index, folder)
            goals.append(_goal(name, objective, tasks[name]))
        except PaftError as error:
            problems += error.problems
    raise_if_any(problems)
    if test_folder is not None:
        raise_if_any(_shared_items(tasks, test_folder))
    return goals, tasks


def _task_index(folder: Path | None) -> dict[str, dict[str, Any]]:
    from lm_eval.tasks import TaskManager

    # lm-eval's own tasks are thousands of files to look through.
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    index: dict[str, dict[str, Any]] = manager.task_index
    return index


def _open(name: str, index: Mapping[str, Mapping[str, Any]], folder: Path | None) -> ConfigurableTask:
    where = f"search.objectives.{name}"
    if name not in index:
        close = difflib.get_close_matches(name, index, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Name a task's own `task:`."
        raise PaftError(f"{where}: no such task {f'in {folder}' if folder else 'of lm-eval'}. {hint}")
    if index[name]["type"] != "task":
        raise PaftError(
            f"{where}: a {index[name]['type'].replace('_', ' ')}, not a task that is one YAML file. Name such tasks one by one."
        )
    config = _load(index[name]["yaml_path"])
    raise_if_any([f"{where}: {problem}" for problem in split_problems(config)])
    return _construct({**config, "test_split": None}, where)


def split_problems(config: Mapping[str, Any]) -> list[str]:
    """Why a task must not be scored in a search; its configuration as lm-eval reads it from YAML."""
    validation, test = config.get("validation_split"), config.get("test_split")
    if validation is None:
        has = f"only test items (test_split: {test})" if test else "no validation_split"
        return [f"has {has}. {WHY}: give the task a validation_split of other items."]
    if validation == test or (TEST.search(str(validation)) and not VALIDATION.search(str(validation))):
        return [f"its validation_split is {validation!r}, which names test items. {WHY}: give it other items."]
    problems = [
        f"its validation items are in {path}, which is named like test items. {WHY}: give it other items, or, if these are "
        "none, a name that says so (validation, dev)."
        for path in _files(config, str(validation))
        if _named_like_test(Path(path))
    ]
    shots = config.get("fewshot_split") or (config.get("fewshot_config") or {}).get("split")
    if shots is not None and (shots == test or TEST.search(str(shots))):
        problems.append(
            f"takes its few-shot examples from test items (fewshot_split: {shots}). Take them from another split."
        )
    return problems


def _files(config: Mapping[str, Any], split: str) -> list[str]:
    """The data files of a split, where a task names any; they need not be local."""
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    if isinstance(named, dict):
        named = named.get(split, [])
    return [str(file) for file in ([named] if isinstance(named, str) else named)]


def _named_like_test(file: Path) -> bool:
    """Whether a file, or else its folder, says `test`; folders further up are the user's own business."""
    if TEST.search(file.stem) or VALIDATION.search(file.stem):
        return not VALIDATION.search(file.stem)
    return bool(TEST_FOLDER.fullmatch(file.parent.name))


def _goal(name: str, objective: Objective, task: ConfigurableTask) -> Goal:
    where = f"search.objectives.{name}"
    higher: dict[str, bool] = task.higher_is_better()
    filters = [each.name for each in task._filters]
    problems = []
    metric = objective.metric or (next(iter(higher)) if len(higher) == 1 else None)
    if metric is None or metric not in higher:
        problem = "must be named" if metric is None else f"is {metric}, which the task has not"
        problems.append(f"{where}.metric: {problem}. It has {', '.join(higher)}.")
    chosen = objective.filter or (filters[0] if len(filters) == 1 else None)
    if chosen is None or chosen not in filters:
        problem = "must be named" if chosen is None else f"is {chosen}, which the task has not"
        problems.append(f"{where}.filter: {problem}. It has {', '.join(filters)}.")
    raise_if_any(problems)
    maximize = higher[str(metric)] if objective.direction is None else objective.direction == "maximize"
    return Goal(objective.name or name, name, f"{metric},{chosen}", maximize)


def _shared_items(tasks: Mapping[str, ConfigurableTask], test_folder: Path) -> list[str]:
    """A problem for each task of which an item is among those of the test tasks."""
    tested: dict[str, str] = {}
    for name, entry in _task_index(test_folder).items():
        if entry["type"] == "task":
            test = _construct(_load(entry["yaml_path"]), f"search.test_tasks: {name}")
            tested |= dict.fromkeys(map(_identity, test.eval_docs), name)
    problems = []
    for name, task in tasks.items():
        items = [_identity(doc) for doc in task.eval_docs]
        shared = [item for item in items if item in tested]
        if shared:
            problems.append(
                f"search.objectives.{name}: {len(shared)} of its {len(items)} items are also in {tested[shared[0]]} of "
                f"{test_folder}. {WHY}: give it other items."
            )
    return problems


def _identity(doc: Mapping[str, Any]) -> str:
    return json.dumps(doc, sort_keys=True, default=str)


def _load(path: str) -> dict[str, Any]:
    from lm_eval.utils import load_yaml_config

    config: dict[str, Any] = load_yaml_config(path, mode="full")
    return config


def _construct(config: dict[str, Any], where: str) -> ConfigurableTask:
    """lm-eval's task; its data are loaded here."""
    from lm_eval.api.task import ConfigurableTask

    try:
        with redirect_stderr(StringIO()):  # the bars of `datasets`
            return ConfigurableTask(config={**config, "metadata": config.get("metadata") or {}})
    except Exception as error:  # whatever `datasets`, Jinja or lm-eval make of a bad file or task
        raise PaftError(
            f"{where}: cannot be opened: {' '.join(str(error).split())[:300]}. Correct the task."
        ) from error


def named_tasks(goals: Iterable[Goal]) -> str:
    """The tasks' names as lm-eval's command line takes them."""
    return ",".join(dict.fromkeys(goal.task for goal in goals))
