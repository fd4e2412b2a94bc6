"""Opens lm-eval's tasks and groups with their items, and finds which of the numbers that they report a measure is.

Everything that is wrong with any of them is said at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_plugin.errors import PaftError, collecting, did_you_mean, one_line, raise_if_any, some
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.evaluation.results import Measure
from paft_plugin.evaluation.task_code import check_tasks, fill_templates_in_sandbox

if TYPE_CHECKING:
    from lm_eval.api.group import ConfigurableGroup
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager


SEED = 0
"""Of whatever a task draws at random: its order of items, its solved examples."""
_NAMING_KEYS = ("doc_to_text", "doc_to_target", "doc_to_choice")
"""Keys of a task that may name a field of its items, rather than hold a template or a function."""


@dataclass(frozen=True)
class OpenTask:
    """A task or a group with its data, ready to be scored."""

    name: str
    tree: Mapping[Any, Any]
    """What lm-eval's `evaluate` takes: `{name: task}`, or `{group: {name: task, …}}`, as deep as groups go."""

    @property
    def group(self) -> ConfigurableGroup | None:
        """Its outermost group, if it is one."""
        (key,) = self.tree
        return None if isinstance(key, str) else key

    @property
    def parts(self) -> dict[str, Task]:
        """Every single task in it, by name."""
        return _parts(self.tree)

    def items(self, limit: int | None) -> int:
        """How many items are scored, at most `limit` of each part."""
        counts = (len(part.eval_docs) for part in self.parts.values())
        return sum(count if limit is None else min(count, limit) for count in counts)


def _parts(tree: Mapping[Any, Any]) -> dict[str, Task]:
    found: dict[str, Task] = {}
    for key, value in tree.items():
        found |= _parts(value) if isinstance(value, Mapping) else {key: value}
    return found


class Catalogue:
    """The tasks that there are in a folder, and lm-eval's own; one in the folder is meant before one of the same name.

    `trusted` is `trust_task_code` of the section `where`: whether files of the folder may run code.

    Raises:
        PaftError: A file in the folder is no YAML, or would run code.
    """

    def __init__(self, folder: Path | None, where: str = "evaluation", trusted: bool = False) -> None:
        fill_templates_in_sandbox()
        if folder is not None:
            check_tasks(folder, where, trusted)
        self._folder, self._knows_all = folder, folder is None
        self._manager = self._index()

    @property
    def _place(self) -> str:
        return " nor ".join(
            [*([f"in {self._folder}"] if self._folder else []), *(["of lm-eval"] if self._knows_all else [])]
        )

    def _index(self) -> TaskManager:
        """The tasks of the folder alone, or those of lm-eval, too: thousands of files, which take five seconds."""
        from lm_eval.tasks import TaskManager

        try:
            return TaskManager(
                include_path=str(self._folder) if self._folder else None, include_defaults=self._knows_all
            )
        except Exception as error:  # YAML's, or whatever lm-eval makes of a file that is none of its own
            raise PaftError(f"{self._folder}: cannot be read as lm-eval tasks: {_cause(error)}") from error

    @property
    def single_tasks(self) -> list[str]:
        """The names of all that are one YAML file."""
        return [name for name, entry in self._manager.task_index.items() if entry["type"] == "task"]

    def kind(self, name: str, where: str) -> str:
        """lm-eval's word for what `name` is: task, python_task, group or tag.

        Raises:
            PaftError: There is no such thing; suggests the closest one.
        """
        if name not in self._manager.task_index and not self._knows_all:
            self._knows_all = True
            self._manager = self._index()
        if name in self._manager.task_index:
            return str(self._manager.task_index[name]["type"])
        hint = did_you_mean(name, self._manager.task_index, otherwise="Name a task's own `task:`.")
        raise PaftError(f"{where}: no such task {self._place}. {hint}")

    def config(self, name: str, where: str) -> dict[str, Any]:
        """A task's YAML, with all that it includes.

        Raises:
            PaftError: What it includes, or a function that it names, is not there.
        """
        try:
            return self._yaml(name, "full")
        except Exception as error:  # of whatever code the task brings along
            raise PaftError(f"{where}: cannot be opened: {_cause(error)}. {self._hint(name, error)}") from error

    def _yaml(self, name: str, mode: str) -> dict[str, Any]:
        """The YAML in one of lm-eval's modes: full, or simple (functions are left out, so no code of the task runs)."""
        from lm_eval.utils import load_yaml_config

        content: dict[str, Any] = load_yaml_config(self._manager.task_index[name]["yaml_path"], mode=mode)
        return content

    def open(self, name: str, where: str, **changes: Any) -> OpenTask:
        """Open a task or a group; its data are loaded here. `changes` replace keys of the task's YAML (of each in a group).

        Raises:
            PaftError: There is no such task, it cannot be opened, or its items cannot be scored.
        """
        from lm_eval.tasks import get_task_dict

        if self.kind(name, where) == "tag":
            names = self._manager.task_index[name]["task"]
            raise PaftError(f"{where}: a tag, which has no number of its own. Name its tasks: {some(names, 5)}.")
        random.seed(SEED)  # some tasks shuffle their items
        try:
            with redirect_stderr(StringIO()):  # the bars of `datasets`
                opened = OpenTask(name, get_task_dict([{"task": name, **changes}], self._manager))
        except Exception as error:  # whatever `datasets`, Jinja or lm-eval make of a bad file or task
            raise PaftError(f"{where}: cannot be opened: {_cause(error)}. {self._hint(name, error)}") from error
        problems = _unfit(opened)
        if not problems and self._is_local(name):
            problems = [problem for part in opened.parts.values() if (problem := _fails_on_an_answer(part))]
        raise_if_any([f"{where}: {problem}" for problem in problems])
        return opened

    def _is_local(self, name: str) -> bool:
        """Whether it is the user's own, whose code nobody may have run before."""
        path = self._manager.task_index[name]["yaml_path"]
        return self._folder is not None and Path(str(path)).is_relative_to(self._folder)

    def _hint(self, name: str, error: BaseException) -> str:
        """Where to look for what is wrong with a task or a group."""
        content = self._yaml(name, "simple")
        if self._manager.task_index[name]["type"] == "group":
            named = [task for task in content["task"] if isinstance(task, str)]
            if missing := [task for task in named if task not in self._manager.task_index]:
                return f"There is no {some(missing)} {self._place}."
        elif files := data_files(content):
            return f"Correct the task or its data, {some(files)}."
        elif "offline" in _cause(error).lower():
            return f"It needs the hub ({content.get('dataset_path')}), and HF_HUB_OFFLINE is set: unset it, or leave this out."
        return "Correct the task, or see to its data."


def data_files(config: Mapping[str, Any], split: str | None = None) -> list[str]:
    """The data files that a task names, of one split or of all; they need not be local."""
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    several = [named]
    if isinstance(named, dict):
        several = list(named.values()) if split is None else [named.get(split, [])]
    return [str(file) for each in several for file in ([each] if isinstance(each, str) else each)]


def open_measures(
    measures: Mapping[str, MeasureConfig],
    folder: Path | None,
    where: str = "evaluation.measures",
    trusted: bool = False,
    open_one: Callable[[Catalogue, str, str], OpenTask] = Catalogue.open,
) -> tuple[list[Measure], dict[str, OpenTask]]:
    """Open the tasks of all measures, from a folder or lm-eval's own; returns the measures in order, and the tasks by name.

    `where` is the key that `measures` are under, for messages; `open_one` takes the catalogue, a task's name and its own key,
    and opens as a rule what lm-eval scores by itself: test items where there are any, else validation.

    Raises:
        PaftError: All that is wrong: an unknown task, metric or filter, items that cannot be read, overlapping groups.
    """
    catalogue = Catalogue(folder, where.partition(".")[0], trusted)
    settled: list[Measure] = []
    tasks: dict[str, OpenTask] = {}
    problems: list[str] = []
    for name, measure in measures.items():
        here = f"{where}.{name}"
        with collecting(problems):
            opened = open_one(catalogue, name, here)
            settled.append(_settle(name, measure, opened, here))
            tasks[name] = opened
    raise_if_any(problems + _overlaps(tasks, where))
    return settled, tasks


def _settle(name: str, config: MeasureConfig, task: OpenTask, where: str) -> Measure:
    """The measure that a task's number is; sets the task's number of solved examples."""
    if not (numbers := _numbers(task)):
        raise PaftError(
            f"{where}: a group without a number of its own (aggregate_metric_list, of a metric and a filter that its tasks "
            f"have). Name its tasks: {some(sorted(task.parts), 5)}."
        )
    problems: list[str] = []
    metric = _choose("metric", config.metric, list(numbers), where, problems)
    filters = numbers.get(metric, list(dict.fromkeys(each for several in numbers.values() for each in several)))
    chosen = _choose("filter", config.filter, filters, where, problems)
    problems += [f"{where}.num_fewshot: {problem}" for problem in _set_examples(task, config.num_fewshot)]
    higher = {part.higher_is_better().get(metric) for part in task.parts.values()} - {None}
    if config.direction is None and len(higher) != 1 and metric in numbers:
        problems.append(f"{where}.direction: must be named (maximize or minimize), as the task does not say.")
    raise_if_any(problems)
    is_higher = bool(higher.pop()) if config.direction is None else config.direction == "maximize"
    return Measure(config.name or name, name, metric, chosen, is_higher)


def _numbers(task: OpenTask) -> dict[str, list[str]]:
    """Metric → filters, of what lm-eval reports of a task or, as a whole, of a group."""
    reported = [
        (metric, name) for part in task.parts.values() for metric in part.higher_is_better() for name in _filters(part)
    ]
    if task.group is not None:
        summed = task.group.config["aggregate_metric_list"] or []
        asked = [(each["metric"], name) for each in summed for name in each["filter_list"]]
        reported = [number for number in asked if number in reported]
    numbers: dict[str, list[str]] = {}
    for metric, name in dict.fromkeys(reported):
        numbers.setdefault(metric, []).append(name)
    return numbers


def _filters(task: Task) -> list[str]:
    """The names of a task's filters; lm-eval's own is called `none`."""
    named = task.get_config("filter_list")
    return ["none"] if named is None else [each["name"] for each in named]


def _choose(key: str, given: str | None, names: list[str], where: str, problems: list[str]) -> str:
    """`given`, or else the only one of `names`; adds to `problems` if there is no such name, or none was given of several."""
    chosen = given or (names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = f"is {chosen}, which the task has not" if chosen else "must be named"
        problems.append(f"{where}.{key}: {problem}. It has {', '.join(names)}.")
    return chosen


def _set_examples(task: OpenTask, count: int | None) -> list[str]:
    """Have `count` solved examples put before each question (None: the task's own number); returns why that cannot be done."""
    if count is None:
        return []
    problems = []
    for name, part in task.parts.items():
        of = f" of {name}" if task.group else ""
        own = part.get_config("num_fewshot")
        if own == 0 and count > 0:
            problems.append(f"is {count}, but the task{of} itself demands 0. Leave it out.")
        elif count > 0 and not _has_examples(part):
            problems.append(f"is {count}, but the task{of} has no other items to take examples from. Leave it out.")
        else:
            part.set_config(key="num_fewshot", value=count)
    return problems


def _has_examples(task: Task) -> bool:
    """Whether there are others than the test items, which lm-eval would fall back on."""
    settings = task.get_config("fewshot_config")
    named = getattr(settings, "split", None) or getattr(settings, "samples", None)
    return bool(named or task.has_training_docs() or task.has_validation_docs())


def _unfit(task: OpenTask) -> list[str]:
    """Why a task's items cannot be scored here."""
    problems = []
    for name, part in task.parts.items():
        of = f"{name}: " if task.group else ""
        if getattr(part, "UNSAFE_CODE", False):
            problems.append(
                f"{of}runs the code that a model writes. Score it in a sandbox, with lm-eval's own command."
            )
        if getattr(part, "MULTIMODAL", False):
            problems.append(f"{of}asks about images or sounds, and only text is scored here. Leave it out.")
        if empty := _empty_field(part):
            problems.append(f"{of}{empty}. Correct the items.")
    return problems


def is_mean(task: Task, metric: str) -> bool:
    """Whether the task's score by a metric is the mean over its items."""
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric) is mean


def _fails_on_an_answer(task: Task) -> str | None:
    """Why the task's own code cannot score an answer, or lm-eval cannot take the mean of what it gives; None if they can.

    lm-eval takes a mean of everything that `process_results` gives, asked for or not, and finds out after the last item. What
    filters of the task's own make of an answer, and which answers another aggregation can take, is not known here.
    """
    own_code, filters = callable(task.get_config("process_results")), task.get_config("filter_list")
    if task.OUTPUT_TYPE != "generate_until" or not own_code or filters or not len(task.eval_docs):
        return None
    metric, aggregations = "process_results", task.aggregation()
    try:
        for metric, value in task.process_results(task.eval_docs[0], ["an answer"]).items():
            if metric not in aggregations or is_mean(task, metric):
                sum([value, value])
    except Exception as error:  # of whatever code the task brings along
        return f"{metric}: the task's own code cannot score an answer: {_cause(error)}. Correct it, or give it no such number."
    return None


def _empty_field(task: Task) -> str | None:
    """What the first item lacks in a field that the task asks for by name; None if no item lacks any.

    lm-eval scores such an item, with None for the question or the answer. A template may well mean to do without.
    """
    names = [str(task.get_config(key)) for key in _NAMING_KEYS]
    fields = [name for name in dict.fromkeys(names) if name in getattr(task, "features", ())]
    if not fields:
        return None
    for number, item in enumerate(task.eval_docs, start=1):
        for field in fields:
            if item[field] is None:
                return f"item {number} has no {field}"
    return None


def _overlaps(tasks: Mapping[str, OpenTask], where: str) -> list[str]:
    """A problem for each task that is in two of the measures: lm-eval keeps one result of each name."""
    owner: dict[str, str] = {}
    problems = []
    for name, task in tasks.items():
        if shared := [part for part in task.parts if part in owner]:
            problems.append(
                f"{where}: {name} and {owner[shared[0]]} both have {some(shared)}, which lm-eval cannot keep apart. "
                "Leave one of the two out."
            )
        owner |= dict.fromkeys(task.parts, name)
    return problems


def _cause(error: BaseException) -> str:
    """What went wrong at the bottom: `datasets` wraps a bad line of a file in an error that says nothing of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error, 300).rstrip(".")
