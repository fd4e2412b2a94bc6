"""Configs as YAML with a reason beside each choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

WIDTH = 120


@dataclass(frozen=True)
class Line:
    """A key with its value, and why it is that one."""

    key: str
    value: Any
    why: str = ""


Section = Sequence[Line | str]
"""Lines, or text that is one already."""


def render(title: str, sections: Sequence[Section]) -> str:
    """A whole file: a comment with `title`, then the sections with a blank line between them."""
    head = "".join(f"# {line}\n" for line in title.splitlines())
    return (
        head
        + "\n"
        + "\n".join(
            "".join(line if isinstance(line, str) else _line(line) for line in section)
            for section in sections
            if section
        )
    )


def _line(line: Line, indent: str = "") -> str:
    text = _dumped(line.key, line.value, indent)
    if not line.why:
        return text
    first, rest = text.split("\n", 1)
    if len(first) + len(line.why) + 4 <= WIDTH:
        return f"{first}  # {line.why}\n{rest}"
    return f"{_wrapped(line.why, indent)}{text}"


def _wrapped(words: str, indent: str) -> str:
    import textwrap

    lines = textwrap.wrap(words, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{indent}# {line}\n" for line in lines)


def entry(values: Mapping[str, Any], why: Mapping[str, str]) -> str:
    """`datasets:` with one entry."""
    lines = [_line(Line(key, value, why.get(key, "")), "    ") for key, value in values.items()]
    joined = "".join(lines)
    return "datasets:\n" + joined.replace("    ", "  - ", 1)


def _dumped(key: str, value: Any, indent: str) -> str:
    # Lists of plain values stay on their line, as people write them.
    flow = isinstance(value, (list, dict)) and not any(isinstance(each, (list, dict)) for each in value)
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, width=10_000, sort_keys=False)
    text = text.removesuffix("...\n").rstrip("\n")
    if isinstance(value, float):
        text = _float(value)
    if "\n" in text:
        body = "".join(f"{indent}  {line}\n" for line in text.split("\n"))
        return f"{indent}{key}:\n{body}"
    return f"{indent}{key}: {text}\n"


def _float(value: float) -> str:
    """`2.0e-5`: without the point YAML takes it for a word."""
    text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return text if 0 < abs(value) < 1e-2 else repr(value)
