"""A check of the items that lm-eval will score, for what it would take without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.api.task import Task

NAMING_KEYS = ("doc_to_text", "doc_to_target", "doc_to_choice")
"""Keys of a task that may name a field of its items, rather than hold a template or a function."""


def empty_field(task: Task) -> str | None:
    """The first item that has nothing in a field which the task asks for by name.

    lm-eval scores such an item, with None for the question or the answer. A template may well mean to do without.
    """
    names = [str(task.get_config(key)) for key in NAMING_KEYS]
    fields = [name for name in dict.fromkeys(names) if name in getattr(task, "features", ())]
    if not fields:
        return None
    for number, item in enumerate(task.eval_docs, start=1):
        for field in fields:
            if item[field] is None:
                return f"item {number} has no {field}"
    return None
