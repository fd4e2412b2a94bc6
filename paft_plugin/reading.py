"""Text, JSON and YAML of others, read with limits: whatever a file holds, the answer is its content or one sentence.

The limits are far above what any real file needs, and far below what harms: a few hundred bytes of YAML can stand for
gigabytes, a deeply nested list ends the interpreter, and opening a FIFO waits for ever.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Hashable
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.errors import PaftError, one_line, printable

MOST_JSON_BYTES = 256 << 20
"""Of a JSON or text file; the largest tokenizers have 35 MB."""
MOST_YAML_BYTES = 1 << 20
_LENGTH, MOST_HEADER_BYTES = 8, 100_000_000
"""Of a safetensors file: the bytes that hold its header's length, and the longest header that the format allows."""
MOST_DEPTH = 64
"""Of lists and mappings in each other."""
MOST_NODES = 50_000
"""Values of a YAML file, with every alias (`*name`) counted as what it stands for."""
PATIENCE = 0.05
"""Seconds of processor time for one match of a regular expression."""
MOST_DIGITS = 100
"""Characters of a number."""
SEVERAL = "several YAML documents"
"""What is said of a file with more than one."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


class UnreadableError(PaftError):
    """A file that is missing, damaged, or beyond the limits."""

    def __init__(self, file: Path | str, what: str, line: int | None = None, hint: str = "") -> None:
        self.what, self.line = what, line
        """What is wrong, without a full stop; and where, from 1."""
        super().__init__(f"{file}: {what}. {hint}".rstrip())


class MissingFileError(UnreadableError):
    """There is no such file."""


def open_regular(file: Path) -> BufferedReader:
    """A file, opened for reading, unless it is a FIFO, which would be waited for, or a device.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(kind := os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise IsADirectoryError if stat.S_ISDIR(kind) else OSError(errno.EINVAL, "no regular file")


def read_bytes(file: Path, most: int = MOST_JSON_BYTES, hint: str = "") -> bytes:
    """The content of a regular file of at most `most` bytes; `hint` ends the message about any other.

    Raises:
        UnreadableError: It is missing, too large, a folder, a FIFO or a device, or cannot be read.
    """
    try:
        with open_regular(file) as opened:
            content = opened.read(most + 1)
    except FileNotFoundError:
        raise MissingFileError(file, "no such file", hint=hint) from None
    except IsADirectoryError:
        raise UnreadableError(file, "a folder, where a file is wanted", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UnreadableError(
            file, f"cannot be read ({getattr(error, 'strerror', None) or error})", hint=hint
        ) from None
    if len(content) > most:
        raise UnreadableError(file, f"larger than {most >> 20} MiB, which no such file is", hint=hint)
    return content


def read_text(file: Path, most: int = MOST_JSON_BYTES, hint: str = "") -> str:
    """`read_bytes` as UTF-8 with plain line ends.

    Raises:
        UnreadableError: As `read_bytes`, or it is not UTF-8.
    """
    try:
        text = read_bytes(file, most, hint).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(file, f"no text in UTF-8 ({error.reason} at byte {error.start})", hint=hint) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes, source: Path | str, hint: str = "") -> Any:
    """What a JSON text holds; `source` names it in messages.

    Raises:
        UnreadableError: It is no JSON, nested too deeply, or has a number that is too long.
    """
    try:
        content = json.loads(text, parse_int=_number(int), parse_float=_number(float))
    except RecursionError:
        raise UnreadableError(source, f"nested more than {MOST_DEPTH} deep", hint=hint) from None
    except (ValueError, MemoryError) as error:  # of its bytes, of a number, of the syntax
        line = getattr(error, "lineno", None)
        raise UnreadableError(source, f"no valid JSON ({one_line(error, 200)})", line, hint) from None
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [child for each in level if isinstance(each, (dict, list)) for child in _containers(each)]
        if not level:
            return content
    raise UnreadableError(source, f"nested more than {MOST_DEPTH} deep", hint=hint)


def _number(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parsed(digits: str) -> float:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"a number of {len(digits)} characters")
        return kind(digits)

    return parsed


def _containers(content: dict[str, Any] | list[Any]) -> list[Any]:
    children = content.values() if isinstance(content, dict) else content
    return [child for child in children if isinstance(child, (dict, list))]


class LimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader within the limits; what is beyond them, or no value of its tag, is a `yaml.YAMLError`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Finished node → how many values it stands for, and how deep they are nested."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        self._depth += 1
        self._nodes += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(
                None, None, "an anchor (&) in it holds itself, so it has no end", event.start_mark
            )
        if not is_alias:
            self._sizes[id(node)] = self._size(node)
        nodes, height = self._sizes[id(node)]
        if max(nodes, self._nodes) > MOST_NODES:
            what = f"more than {MOST_NODES} values, with each alias (*) counted as what it stands for"
            raise yaml.composer.ComposerError(None, None, what, event.start_mark)
        self._check_depth(self._depth + height, event)
        return node

    def _check_depth(self, depth: int, event: Any) -> None:
        if depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MOST_DEPTH} deep", event.start_mark)

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        self._check_depth(self._depth, self.peek_event())
        return super().compose_sequence_node(anchor)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        self._check_depth(self._depth, self.peek_event())
        return super().compose_mapping_node(anchor)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if found := _CONTROL.search(node.value):
            what = f"a control character ({printable(found[0])}) in a text"
            raise yaml.composer.ComposerError(None, None, what, node.start_mark)
        if node.tag.endswith((":int", ":float")) and len(node.value) > MOST_DIGITS:
            what = f"a number of {len(node.value)} characters"
            raise yaml.composer.ComposerError(None, None, what, node.start_mark)
        return node

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        children = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes = [self._sizes[id(child)] for child in children]
        return 1 + sum(size for size, _ in sizes), 1 + max((height for _, height in sizes), default=0)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Hashable:
        try:
            value: Hashable = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            text = f"{repr(node.value[:60]) if isinstance(node.value, str) else 'it'} is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error
        return value


def parse_yaml(text: str, source: Path | str, hint: str = "", loader: type[LimitedLoader] = LimitedLoader) -> Any:
    """What a YAML text holds; `source` names it in messages.

    Raises:
        UnreadableError: It is no YAML with plain values, or beyond the limits.
    """
    return _yaml(lambda: loader(text).get_single_data(), text, source, hint)


def compose_yaml(text: str, source: Path | str) -> yaml.Node | None:
    """The nodes of a YAML text, which know their lines; None for an empty one.

    Raises:
        UnreadableError: As `parse_yaml`, of what shows before values are made.
    """
    node: yaml.Node | None = _yaml(lambda: LimitedLoader(text).get_single_node(), text, source, "")
    return node


def _yaml(load: Callable[[], Any], text: str, source: Path | str, hint: str) -> Any:
    if len(text) > MOST_YAML_BYTES:
        raise UnreadableError(source, f"larger than {MOST_YAML_BYTES >> 20} MiB, which no such file is", hint=hint)
    try:
        return load()
    except (yaml.YAMLError, RecursionError, MemoryError) as error:
        mark = getattr(error, "problem_mark", None)
        if mark and "another document" in str(error):
            what = f"{SEVERAL} (another begins in line {mark.line + 1}), where one is wanted"
            raise UnreadableError(source, what, mark.line + 1, hint) from None
        what = one_line(error, 300) if mark is None else f"{error.problem}, line {mark.line + 1}"  # type: ignore[union-attr]
        raise UnreadableError(source, f"no valid YAML: {what}", mark.line + 1 if mark else None, hint) from None


def read_yaml_file(file: Path, hint: str = "", loader: type[LimitedLoader] = LimitedLoader) -> Any:
    """`read_text` and `parse_yaml` in one."""
    return parse_yaml(read_text(file, MOST_YAML_BYTES, hint), file, hint, loader)


def read_json_file(file: Path, hint: str = "") -> Any:
    """`read_bytes` and `parse_json` in one."""
    return parse_json(read_bytes(file, hint=hint), file, hint)


def matches(pattern: str, text: str) -> bool:
    """Whether the regular expression of somebody else matches the whole of `text`.

    Raises:
        PaftError: It is none, or has not come to an end soon: `(a+)+$` never does.
    """
    import regex

    try:
        return regex.fullmatch(pattern, text, timeout=PATIENCE) is not None
    except TimeoutError:
        raise PaftError(f"The regular expression {pattern!r} comes to no end on {text!r}. Correct it.") from None
    except regex.error as error:
        raise PaftError(f"{pattern!r} is no regular expression ({error}). Correct it.") from None


def read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes begin in a safetensors file, and what its header says of each tensor.

    Raises:
        UnreadableError: It is no safetensors file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH), "little")
        content = parse_json(opened.read(min(length, MOST_HEADER_BYTES)), file)
    if not isinstance(content, dict):
        raise UnreadableError(file, "no safetensors file")
    return _LENGTH + length, {name: each for name, each in content.items() if name != "__metadata__"}
