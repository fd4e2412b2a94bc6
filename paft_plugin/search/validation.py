"""What a search may score: rows that the run holds out for validation, and lm-eval's tasks on their validation items alone.

lm-eval scores a task's `test_split` wherever it has one. A search that did so would choose by the very items that are to judge
its result. So every task is opened without its test split, and refused if no other is left to score, if what it calls
validation is named like test items, or if any of its items is among those of the tasks that will judge the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.evaluation.held_out_rows import HELD_OUT
from paft_plugin.evaluation.held_out_scores import FOLDER, RETAINED, HeldOut, read_held_out
from paft_plugin.evaluation.results import Measure
from paft_plugin.evaluation.tasks import Catalogue, OpenTask, data_files, open_measures
from paft_plugin.fusion.recipe.settings import ROLES
from paft_plugin.search.config import SearchRequest

NAMED_LIKE_TEST = re.compile(r"(^|[^a-z])test(s|ing)?([^a-z]|$)", re.IGNORECASE)
TEST_FOLDER = re.compile(r"test(s|ing)?([_-]?(set|split|data|items?))?", re.IGNORECASE)
NAMED_LIKE_VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation|dev|development)([^a-z]|$)", re.IGNORECASE)
WHY = "A search that chose by test items could not be judged by them any more"


@dataclass(frozen=True)
class Objectives:
    """What a search scores, opened."""

    measures: list[Measure]
    """In the order of the objectives."""
    tasks: dict[str, OpenTask]
    """lm-eval's, by name."""
    rows: HeldOut
    """The held-out rows of the other measures."""


def open_objectives(request: SearchRequest) -> Objectives:
    """Open what a search scores: measures of held-out rows by their names, anything else as an lm-eval task.

    Without objectives these are what each branch is about, and what shall be retained.

    Raises:
        PaftError: All that is wrong: no rows were held out, and what `open_goals` finds in tasks.
    """
    search = request.search
    rows = _validation_rows(request)
    there = {measure.name: measure for measure in rows.measures()} if rows else {}
    named = search.objectives or {name: MeasureConfig() for name in _usual(request, there)}
    if not named:
        raise PaftError(
            f"search.objectives: missing, and no rows were held out in {request.output_dir / HELD_OUT}. Name lm-eval tasks, or "
            "run `axolotl paft run` with `evaluation: {held_out: …}` first."
        )
    raise_if_any(
        [
            f"search.objectives.{name}: is measured on held-out rows, and takes no settings. Leave out {some(said)}."
            for name, config in named.items()
            if name in there and (said := sorted(config.model_fields_set))
        ]
    )
    of_tasks = {name: config for name, config in named.items() if name not in there}
    goals: list[Measure] = []
    tasks: dict[str, OpenTask] = {}
    if of_tasks:
        goals, tasks = open_goals(of_tasks, search.tasks, search.test_tasks, search.trust_task_code)
    by_task = dict(zip(of_tasks, goals, strict=True))
    measures = [there[name] if name in there else by_task[name] for name in named]
    return Objectives(measures, tasks, _only(rows, measures))


def _validation_rows(request: SearchRequest) -> HeldOut:
    """The rows that the run in `output_dir` holds out for validation, of each branch of which it does."""
    of_role = {role: [branch.name for branch in request.branches if branch.role == role] for role in ROLES}
    rows, _ = read_held_out(request.output_dir / HELD_OUT, of_role["sft"], of_role["preference"], split="validation")
    return rows


def _usual(request: SearchRequest, there: Mapping[str, Measure]) -> list[str]:
    """What each branch is about, as far as rows of it were held out, and what shall be retained."""
    wanted = [
        next((name for name in names if name in there), None)
        for branch in request.branches
        for names in [(f"{branch.name}_match", f"{branch.name}_nll", branch.name)]
    ]
    return [name for name in (*wanted, RETAINED if RETAINED in there else None) if name is not None]


def _only(rows: HeldOut, measures: Iterable[Measure]) -> HeldOut:
    """The rows that any of the measures is about."""
    tasks = {measure.task for measure in measures}
    if (
        FOLDER in tasks or f"{FOLDER}/{RETAINED}" in tasks
    ):  # the distance to the base is taken on all, and its own answers
        return rows
    return HeldOut(
        {name: each for name, each in rows.answers.items() if f"{FOLDER}/{name}" in tasks},
        {name: each for name, each in rows.pairs.items() if f"{FOLDER}/{name}" in tasks},
    )


def open_goals(
    objectives: Mapping[str, MeasureConfig],
    folder: Path | None,
    test_folder: Path | None = None,
    trusted: bool = False,
) -> tuple[list[Measure], dict[str, OpenTask]]:
    """Open the tasks of all objectives on their validation items; returns the objectives in order, and the tasks by name.

    `folder` holds lm-eval task files (None: lm-eval's own tasks), `test_folder` those that will judge the result, if any.

    Raises:
        PaftError: All that is wrong: an unknown task, metric or filter; a task without validation items; test items.
    """
    goals, tasks = open_measures(objectives, folder, "search.objectives", trusted, _open_validation)
    if test_folder is not None:
        raise_if_any(_shared_items(tasks, test_folder, trusted))
    return goals, tasks


def _open_validation(catalogue: Catalogue, name: str, where: str) -> OpenTask:
    """Open a task without its test split, if what is left is fit to search on."""
    kind = catalogue.kind(name, where)
    if kind != "task":
        raise PaftError(
            f"{where}: a {kind.replace('_', ' ')}, not a task that is one YAML file. Name such tasks one by one."
        )
    raise_if_any([f"{where}: {problem}" for problem in split_problems(catalogue.config(name, where))])
    return catalogue.open(name, where, test_split=None)


def split_problems(config: Mapping[str, Any]) -> list[str]:
    """Why a task must not be scored in a search; its configuration as lm-eval reads it from YAML."""
    validation, test = config.get("validation_split"), config.get("test_split")
    if validation is None:
        has = f"only test items (test_split: {test})" if test else "no validation_split"
        return [f"has {has}. {WHY}: give the task a validation_split of other items."]
    if validation == test or (
        NAMED_LIKE_TEST.search(str(validation)) and not NAMED_LIKE_VALIDATION.search(str(validation))
    ):
        return [f"its validation_split is {validation!r}, which names test items. {WHY}: give it other items."]
    problems = [
        f"its validation items are in {path}, which is named like test items. {WHY}: give it other items, or, if these are "
        "none, a name that says so (validation, dev)."
        for path in data_files(config, str(validation))
        if _named_like_test(Path(path))
    ]
    shots = config.get("fewshot_split") or (config.get("fewshot_config") or {}).get("split")
    if shots is not None and (shots == test or NAMED_LIKE_TEST.search(str(shots))):
        problems.append(
            f"takes its few-shot examples from test items (fewshot_split: {shots}). Take them from another split."
        )
    return problems


def _named_like_test(file: Path) -> bool:
    """Whether a file, or else its folder, says `test`; folders further up are the user's own business."""
    if NAMED_LIKE_TEST.search(file.stem) or NAMED_LIKE_VALIDATION.search(file.stem):
        return not NAMED_LIKE_VALIDATION.search(file.stem)
    return bool(TEST_FOLDER.fullmatch(file.parent.name))


def _shared_items(tasks: Mapping[str, OpenTask], test_folder: Path, trusted: bool) -> list[str]:
    """A problem for each task of which an item is among those of the test tasks."""
    tested: dict[str, str] = {}
    judging = Catalogue(test_folder, "search", trusted)
    for name in judging.single_tasks:
        (test,) = judging.open(name, f"search.test_tasks: {name}").parts.values()
        tested |= dict.fromkeys(map(_identity, test.eval_docs), name)
    problems = []
    for name, task in tasks.items():
        items = [_identity(doc) for part in task.parts.values() for doc in part.eval_docs]
        shared = [item for item in items if item in tested]
        if shared:
            problems.append(
                f"search.objectives.{name}: {len(shared)} of its {len(items)} items are also in {tested[shared[0]]} of "
                f"{test_folder}. {WHY}: give it other items."
            )
    return problems


def _identity(doc: Mapping[str, Any]) -> str:
    return json.dumps(doc, sort_keys=True, default=str)


def named_tasks(goals: Iterable[Measure]) -> str:
    """The tasks' names as lm-eval's command line takes them."""
    return ",".join(dict.fromkeys(goal.task for goal in goals if not goal.task.startswith(FOLDER)))
