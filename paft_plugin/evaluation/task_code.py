"""Code that a folder of lm-eval task files could run, found before lm-eval sees the folder.

lm-eval reads every `*.yaml` of a folder, named or not, with a loader that builds any Python object; `!function` imports a file
beside the YAML; a metric that it does not know is a script of the `evaluate` library; and its templates reach all of Python.
So a folder is read here first, with a safe loader. What runs code in it wants `trust_task_code: true`; a Python tag is never
taken, and templates are filled in Jinja's sandbox.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.errors import PaftError, collecting, raise_if_any
from paft_plugin.reading import LimitedLoader, read_yaml_file

FUNCTION = "!function"
TRUST = "trust_task_code: true"
MOST_FILES = 20_000
"""Of a folder, with all that they include; lm-eval's own are 13 000."""


@dataclass(frozen=True)
class _Function:
    """What `!function` names, and where."""

    name: str
    line: int


class _TaskLoader(LimitedLoader):
    """YAML with lm-eval's `!function`, which runs nothing here."""


def _function(_loader: _TaskLoader, node: yaml.Node) -> _Function:
    return _Function(str(node.value), node.start_mark.line + 1)


_TaskLoader.add_constructor(FUNCTION, _function)


def check_tasks(folder: Path, where: str, trusted: bool = False) -> None:
    """Refuse a folder that would run code; `where` is the section that `trust_task_code` may stand in, such as `evaluation`.

    Raises:
        PaftError: All that would run code, by file and line; a file that cannot be read.
    """
    unreadable: list[str] = []
    code: list[str] = []
    waiting, seen = list(_task_files(folder)), set()
    while waiting:
        file = waiting.pop(0)
        if (real := os.path.realpath(file)) in seen:
            continue
        seen.add(real)
        if len(seen) > MOST_FILES:
            raise PaftError(f"{folder}: more than {MOST_FILES} task files. Give a folder with fewer.")
        with collecting(unreadable):
            content = read_yaml_file(
                file, f"lm-eval reads every .yaml of {folder}: correct it, or move it away.", _TaskLoader
            )
            waiting += _included(file, content)
            code += [f"{file}{found}" for found in _code_in(content)]
    if code and not trusted:
        remedy = f"If you have read that code and want it to run, set `{TRUST}` under `{where}:`."
        unreadable += [*code, remedy]
    raise_if_any(unreadable)


def fill_templates_in_sandbox() -> None:
    """Have lm-eval fill every template in Jinja's sandbox, from now on in this process: a plain one reaches all of Python."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    safe = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    safe.filters.update(utils.env.filters)
    utils.env = safe


def task_inputs(folder: Path) -> list[Path]:
    """A folder of lm-eval task files, what they include or call from elsewhere, and every local file of items that they name.

    A score is out of date when one of them changes.
    """
    found, waiting = [], list(_task_files(folder))
    seen = {file.resolve() for file in waiting}
    for file in waiting:  # it grows by what they include
        try:
            content = read_yaml_file(file, loader=_TaskLoader)
        except PaftError:
            continue  # whoever opens the tasks says so
        for included in _included(file, content):
            if included.resolve() not in seen and len(seen) < MOST_FILES:
                seen.add(included.resolve())
                waiting.append(included)
                found.append(included)
        called = (
            file.parent / f"{each.name.partition('.')[0]}.py" for each in _walk(content) if isinstance(each, _Function)
        )
        found += filter(Path.is_file, called)
        for key in ("data_files", "dataset_path"):
            found += (path for named in _values(content, key) for path in _files_named(named))
    # What lies in the folder is read with it.
    return [folder, *dict.fromkeys(path for path in found if not path.resolve().is_relative_to(folder.resolve()))]


def tasks_in(folder: Path | None) -> set[str]:
    """What lm-eval task files of a folder call their tasks, groups and tags."""
    found: set[str] = set()
    for file in _task_files(folder) if folder is not None else ():
        try:
            content = read_yaml_file(file, loader=_TaskLoader)
        except PaftError:
            continue  # whoever opens the tasks says so
        found |= {name for key in ("task", "group", "tag") for name in _values(content, key) if isinstance(name, str)}
    return found


def _task_files(folder: Path) -> Iterator[Path]:
    """What lm-eval indexes, in a fixed order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(names) if name.endswith(".yaml"))


def _included(file: Path, content: Any) -> Iterator[Path]:
    """The files that a task file includes, of any name and from anywhere, as lm-eval finds them."""
    for name in _values(content, "include"):
        if isinstance(name, str) and "\0" not in name:
            found = Path(name) if Path(name).is_file() else file.parent / name
            if found.exists():
                yield found


def _code_in(content: Any) -> Iterator[str]:
    """What in a task file runs code, each with its line if it is known."""
    for found in _walk(content):
        if isinstance(found, _Function):
            yield f", line {found.line}: {FUNCTION} {found.name} would run code."
    for name in _values(content, "metric"):
        if not _is_metric(name):
            yield f": metric: {name} is none of lm-eval's own, and would be loaded as code."
    for key in ("hf_evaluate", "trust_remote_code"):
        if any(_values(content, key)):
            yield f": {key} would load code."


def _is_metric(name: object) -> bool:
    from lm_eval.api import metrics, registry  # noqa: F401 - the first fills the second

    return not isinstance(name, str) or name in registry.METRIC_REGISTRY or name in registry.HIGHER_IS_BETTER_REGISTRY


def _walk(content: Any) -> Iterator[Any]:
    yield content
    if isinstance(content, Mapping):
        for value in content.values():
            yield from _walk(value)
    elif isinstance(content, list):
        for value in content:
            yield from _walk(value)


def _values(content: Any, key: str) -> Iterator[Any]:
    """Everything that stands under `key` anywhere, the items of a list one by one."""
    for found in _walk(content):
        if isinstance(found, Mapping) and key in found:
            value = found[key]
            yield from value if isinstance(value, list) else [value]


def _files_named(named: Any) -> Iterator[Path]:
    """The files that a path, a pattern, or a list or mapping of them comes to."""
    if isinstance(named, str) and Path(named).is_absolute():
        yield from (Path(path) for path in sorted(glob.glob(named)))  # noqa: PTH207 - Path.glob refuses absolute patterns
    elif isinstance(named, dict | list):
        for value in named.values() if isinstance(named, dict) else named:
            yield from _files_named(value)
