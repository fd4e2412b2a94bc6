"""The files on this disk that the scores depend on: task files, and the items that they name. Imports nothing heavy."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def task_inputs(folder: Path) -> list[Path]:
    """The folder of lm-eval task files, and every local file of items that they name."""
    found = [folder]
    for file in sorted(folder.rglob("*.yaml")):
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=_AnyTag)  # noqa: S506 (a SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError):
            continue  # whoever opens the tasks says so
        if isinstance(content, dict):
            kwargs = content.get("dataset_kwargs") or {}
            found += _existing(kwargs.get("data_files") if isinstance(kwargs, dict) else None)
            found += _existing(content.get("dataset_path"))
    return list(dict.fromkeys(found))


class _AnyTag(yaml.SafeLoader):
    """YAML with lm-eval's `!function`, which is of no interest here."""


_AnyTag.add_multi_constructor("", lambda _loader, _tag, _node: None)


def _existing(named: Any) -> Iterator[Path]:
    """The files that a path, a pattern, or a list or mapping of them comes to."""
    if isinstance(named, str) and Path(named).is_absolute():
        yield from (Path(path) for path in sorted(glob.glob(named)))  # noqa: PTH207 - Path.glob refuses absolute patterns
    elif isinstance(named, dict):
        for value in named.values():
            yield from _existing(value)
    elif isinstance(named, list):
        for value in named:
            yield from _existing(value)
