"""A recipe's text as YAML holds it, with the line of every value, so that a finding can say where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.recipe.render import Header, read_header
from paft_plugin.reading import MOST_YAML_BYTES, SEVERAL, UnreadableError, compose_yaml, parse_yaml, read_text
from paft_plugin.schema import Keys


@dataclass(frozen=True)
class Document:
    """A recipe as text and as plain dicts and lists."""

    file: Path
    content: dict[Any, Any]
    lines: dict[Keys, int] = field(default_factory=dict)
    """Keys → line of the key (or of the list's item), from 1."""
    duplicates: tuple[Keys, ...] = ()
    """Keys that stand more than once in their mapping."""
    header: Header | None = None
    """The `mergekit-yaml …` above it, as `axolotl paft recipe` writes it; None without one."""

    def line(self, keys: Keys) -> int | None:
        """The line of a value, or of the nearest thing around it that has one."""
        return next((self.lines[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in self.lines), None)

    def finding(self, rule: Rule, keys: Keys, message: str, fix: str) -> Finding:
        """A finding at a place in this document."""
        return rule.found(self.file, self.line(keys), keys, message, fix)


NOT_YAML = Rule.error(
    101, "not-yaml", "The file is missing, no valid YAML, or its top level is no mapping of keys to values."
)


def read(file: Path) -> Document | Finding:
    """Read a recipe; a finding if it can't be."""
    fix = "Give a mergekit recipe: `axolotl paft recipe` writes one."
    try:
        text = read_text(file, MOST_YAML_BYTES)
        content, node = parse_yaml(text, file), compose_yaml(text, file)
    except UnreadableError as error:
        if SEVERAL in error.what:
            fix = (
                "Such files are for mergekit-multi: give each merge a file of its own, merge those with a `name` first, "
                "and write their folders in the place of their names."
            )
        return NOT_YAML.found(file, error.line, (), f"{error.what[0].upper()}{error.what[1:]}.", fix)
    if not isinstance(content, dict) or node is None:
        kind = "is empty" if content is None else f"holds a {type(content).__name__}, not keys with values"
        return NOT_YAML.found(file, None, (), f"The file {kind}.", fix)
    lines: dict[Keys, int] = {}
    return Document(file, content, lines, tuple(_places(node, (), lines)), read_header(text))


def _places(node: yaml.Node, keys: Keys, lines: dict[Keys, int]) -> Iterator[Keys]:
    """Enter the line of everything below a node; yield the keys that stand twice."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value_node in node.value:
            key = _key(key_node)
            if key == "<<":  # YAML's merge key: what it brings in has no place of its own
                continue
            place: Keys = (*keys, key)
            if key in seen:
                yield place
            seen.add(key)
            lines[place] = key_node.start_mark.line + 1
            yield from _places(value_node, place, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            position: Keys = (*keys, index)
            lines[position] = item.start_mark.line + 1
            yield from _places(item, position, lines)


def _key(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "?"
