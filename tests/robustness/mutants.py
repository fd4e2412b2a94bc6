"""Hostile variants of a valid file: JSON and YAML with one thing other than it was, text and bytes that were cut or garbled."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

Keys = tuple[Any, ...]
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 10**30, 1e30, -1e308, float("nan"), float("inf"), 0.5),
    *(
        "",
        "x",
        "x" * 300,
        "\x1b[2J\x07",
        "\ud800",
        "\0",
        "../../..",
        "/etc/passwd",
        "~nosuchuser/x",
        "1e400",
        "(a+)+$",
        "a\nb",
    ),
    *([], {}, [[]], [None], [{}], {"": None}, {"x": {}}, [1, "x"], ["x", "x"], [[1, 2], [3]], {"a": [1, {"b": None}]}),
    json.loads("[" * 40 + "]" * 40),
)
"""What no file of that kind has at that place, or has in another one."""


def _places(content: Any, keys: Keys = ()) -> Iterator[Keys]:
    yield keys
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _places(value, (*keys, key))


def _changed(content: Any, keys: Keys, change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change` has been called with what holds the last of `keys`, and that key."""
    if not keys:
        return content
    content = copy.deepcopy(content)
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    change(holder, keys[-1])
    return content


@st.composite
def documents(draw: st.DrawFn, content: Any) -> Any:
    """`content` with one or two things replaced, removed, repeated or added."""
    for _ in range(draw(st.integers(1, 2))):
        keys = draw(st.sampled_from(list(_places(content))))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "whole"]))

        def add(holder: Any, key: Any, odd: Any = odd) -> None:
            if isinstance(holder, list):
                holder.insert(key, odd)
            else:
                holder["added"] = odd

        def replace(holder: Any, key: Any, odd: Any = odd) -> None:
            holder[key] = odd

        def remove(holder: Any, key: Any) -> None:
            del holder[key]

        if how == "whole" and not keys:
            content = odd
        else:
            content = _changed(content, keys, {"add": add, "remove": remove}.get(how, replace))
    return content


@st.composite
def garbled(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut short, with a few bytes changed, repeated or put in."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    how = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "nothing"]))
    if how == "cut":
        return content[:place]
    if how == "nothing":
        return b""
    some = draw(st.binary(min_size=1, max_size=8))
    if how == "insert":
        return content[:place] + some + content[place:]
    if how == "flip":
        return content[:place] + some + content[place + len(some) :]
    return content[:place] + content[place // 2 :]


def json_files(text: bytes) -> st.SearchStrategy[bytes]:
    """Variants of a JSON file."""
    mutants = documents(json.loads(text)).map(lambda content: json.dumps(content).encode())
    return st.one_of(mutants, mutants, mutants, garbled(text))


def json_lines(text: bytes) -> st.SearchStrategy[bytes]:
    """Variants of a file of JSON lines."""
    rows = [json.loads(line) for line in text.splitlines()]
    mutants = documents(rows).map(
        lambda content: "\n".join(map(json.dumps, content if isinstance(content, list) else [content])).encode()
    )
    return st.one_of(mutants, mutants, mutants, garbled(text))


def yaml_files(text: bytes) -> st.SearchStrategy[bytes]:
    """Variants of a YAML file; a comment above it is kept, and can be garbled."""
    mutants = documents(yaml.safe_load(text)).map(lambda content: json.dumps(content).encode())
    return st.one_of(mutants, mutants, mutants, garbled(text))


def safetensors_files(content: bytes) -> st.SearchStrategy[bytes]:
    """Variants of a safetensors file: of its header, with the length that it then has, or of any byte."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]

    def written(changed: Any) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + rest

    return st.one_of(documents(header).map(written), garbled(content), garbled(content[: 8 + length]))


STRATEGIES = {".json": json_files, ".jsonl": json_lines, ".yml": yaml_files, ".safetensors": safetensors_files}
"""Of a file by its suffix; all others are text."""


def variants(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Hostile variants of a file called `name`."""
    return next((make(content) for suffix, make in STRATEGIES.items() if name.endswith(suffix)), garbled(content))
