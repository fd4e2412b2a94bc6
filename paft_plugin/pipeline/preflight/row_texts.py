"""The texts of a row, by the column that each stands in, and which of them are not in what a strategy made of the row."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("role", "from", "speaker")
CONTENTS = ("content", "value", "text")
MEANT = {
    *("system", "system_prompt", "system_message", "history", "instruction", "input"),
    *("context", "prompt", "question", "query", "tools", "functions"),
}
"""Columns that the answers depend on, whatever a config says; others may be ids, scores, names of models."""
CALLS = ("tool_calls", "function_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
MOST_LOST = 0.2
"""Of a text's letters: a template may trim and quote, but not leave out more than this."""


@dataclass(frozen=True)
class RowText:
    """A text of a row."""

    place: str
    """Its column, for messages with their role: `chosen (system)`."""
    text: str
    meant: bool
    """Whether a row without it teaches something else."""


def is_conversation(value: Any) -> bool:
    """A list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def texts_of(row: Mapping[str, Any], read: Collection[str]) -> Iterator[RowText]:
    """The texts of a row; what stands in the columns that are `read` is meant to be there."""
    for column, value in row.items():
        meant = column in MEANT or column in read
        if isinstance(value, Mapping) and _key(value, ROLES):
            value = [value]
        if is_conversation(value) and all(_key(message, ROLES) for message in value):
            for message in value:
                yield from _of_message(column, message, meant)
        elif text := "\n".join(leaves(value)):
            yield RowText(column, text, meant)


def _of_message(column: str, message: Mapping[str, Any], meant: bool) -> Iterator[RowText]:
    content = "\n".join(leaves(message.get(_key(message, CONTENTS) or "")))
    # Templates drop what was thought before earlier answers, on purpose.
    thoughts = THOUGHT.findall(content)
    yield RowText(f"{column} ({message[_key(message, ROLES)]})", THOUGHT.sub("", content), meant)
    for key in CALLS:
        yield RowText(f"{column} ({key})", "\n".join(leaves(message.get(key))), meant)
    yield RowText(
        f"{column} (reasoning)",
        "\n".join([*thoughts, *(text for key in THOUGHTS for text in leaves(message.get(key)))]),
        False,
    )


def _key(message: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in message), "")


def leaves(value: Any) -> Iterator[str]:
    """The texts in a value, however deep; those that only name a kind of thing aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if key not in ("type", "id"):
                yield from leaves(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)


def letters(text: str) -> str:
    """Letters and digits alone: templates trim, quote and escape."""
    return re.sub(r"[\W_]+", "", text).casefold()


def left_out(row: Mapping[str, Any], read: Collection[str], made: str) -> list[RowText]:
    """The texts of `row` that `made` does not hold."""
    held = letters(made)
    return [text for text in texts_of(row, read) if is_missing(text.text, held)]


def is_missing(text: str, held: str) -> bool:
    """Whether `held`, letters alone, lacks a good part of a text."""
    pieces = [letters(piece) for piece in re.split(r"[\n.!?:]|\\n", text)]
    lost = sum(len(piece) for piece in pieces if piece not in held)
    return lost > MOST_LOST * sum(map(len, pieces))
