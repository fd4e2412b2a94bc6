"""Files of others, read with limits: each member of each kind is one sentence that names the file, soon and in little memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError, printable
from paft_plugin.files import JsonFile, resolved
from paft_plugin.fusion.lint.document import Header, read_header
from paft_plugin.reading import (
    MOST_DEPTH,
    LimitedLoader,
    UnreadableError,
    matches,
    parse_json,
    parse_yaml,
    read_json_file,
    read_text,
    read_yaml_file,
)
from paft_plugin.schema import read_yaml


def laughs(start: str, line: str, levels: int = 9) -> str:
    """Aliases of aliases: a few lines that stand for 9⁹ values."""
    return "\n".join([f"a0: &a0 {start}", *(line.format(new=n, old=n - 1) for n in range(1, levels))])


NINE = "[" + ", ".join(["*a{old}"] * 9) + "]"
HOSTILE_YAML = {
    "lists of aliases": laughs("[x, x, x, x, x, x, x, x, x]", "a{new}: &a{new} " + NINE),
    "mappings of aliases": laughs("{x: y}", "a{new}: &a{new} {{p: *a{old}, q: *a{old}, r: *a{old}, s: *a{old}}}", 14),
    "merge keys": laughs("{x: y}", "a{new}: &a{new} {{<<: " + NINE + "}}"),
    "an endless anchor": "a: &a [*a]",
    "an endless mapping": "a: &a {b: *a}",
    "deep flow lists": "a: " + "[" * 5000,
    "deep flow mappings": "{a: " * 5000,
    "deep block lists": "a:\n  " + "- " * 5000,
    "a chain of anchors": "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 300))]),
    "a long integer": "a: " + "9" * 5000,
    "a long hexadecimal integer": "a: 0x" + "f" * 5000,
    "a long sexagesimal integer": "a: 1" + ":1" * 5000,
    "a long float": "a: " + "9" * 5000 + ".0",
    "no boolean": "a: !!bool x",
    "no integer": "a: !!int x",
    "an empty integer": "a: !!int ''",
    "no float": "a: !!float x",
    "no timestamp": "a: !!timestamp x",
    "an impossible date": "a: 2024-13-45",
    "an impossible time": "a: 2024-01-01T25:61:61Z",
    "a Python tag": "a: !!python/object/apply:os.system ['true']",
    "a tag of nobody": "a: !function x",
    "a list as key": "? [a]\n: b",
    "an escape sequence": 'a: "\\e[2J"',
    "a NUL": 'a: "\\0"',
    "a surrogate": 'a: "\\ud800"',
    "a C1 control character": 'a: "\\x9b2J"',
    "a raw control character": "a: \x1b[2J",
    "an alias of nothing": "a: *b",
    "many values": "a: [" + "1," * 200_000 + "]",
    "two documents": "a: 1\n---\na: 2",
    "a large file": "a: " + "x" * (2 << 20),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_yaml_beyond_the_limits_is_one_plain_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text(HOSTILE_YAML[name])
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(UnreadableError) as caught:
        read_yaml(file, "Write keys and values.")
    after = resource.getrusage(resource.RUSAGE_SELF)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: ")
    assert problem == printable(problem).replace("\n", " ")
    assert after.ru_utime - before.ru_utime < 20
    assert after.ru_maxrss - before.ru_maxrss < 500 << 10


def test_what_people_write_is_read_as_before() -> None:
    text = "a: &a {x: 1, y: [1.5, yes, ~, 2024-01-02]}\nb:\n  <<: *a\n  x: 'tab\tand ünïcode 🙂'\nc: [*a, *a]\n"
    content = parse_yaml(text, "a.yml")
    assert content["b"]["y"] == content["a"]["y"] == content["c"][1]["y"]
    assert content["b"]["x"] == "tab\tand ünïcode 🙂"
    nested = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert parse_yaml(nested, "a.yml") == parse_json(nested, "a.json")
    with pytest.raises(UnreadableError, match="deep"):
        parse_yaml(f"[{nested}]", "a.yml")
    with pytest.raises(UnreadableError, match="deep"):
        parse_json(f"[[{nested}]]", "a.json")


HOSTILE_JSON = {
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a long integer": "9" * 5000,
    "an integer that no float holds": f"[{'9' * 101}]",
    "a long float": "1." + "0" * 5000,
    "half": "{",
    "no UTF-8": "\xff",
    "more than one": '{"a": 1} x',
    "nothing": "",
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_json_beyond_the_limits_is_one_plain_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(HOSTILE_JSON[name].encode("latin-1"))
    with pytest.raises(UnreadableError) as caught:
        read_json_file(file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: ")
    assert len(problem) < len(str(file)) + 300


@pytest.mark.parametrize("what", ["FIFO", "folder", "loop", "device", "NUL", "missing", "no text"])
def test_what_is_no_file_is_named_and_never_waited_for(what: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    if what == "FIFO":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "loop":
        file.symlink_to(file)
    elif what == "device":
        file = Path(os.devnull)
    elif what == "NUL":
        file = tmp_path / "a\0b"
    elif what == "no text":
        file.write_bytes(b"\xff\xfe")
    for read in (read_text, read_json_file, read_yaml_file):
        with pytest.raises(UnreadableError) as caught:
            read(file)
        assert caught.value.problems[0].startswith(printable(f"{file}: "))


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (Path("~nosuchuser/x"), Path("a\0b")):
        with pytest.raises(PaftError, match="no path"):
            resolved(path)
    with contextlib.suppress(PaftError):  # newer versions of Python take the loop for a path
        resolved(loop / "x")


def test_a_terminal_obeys_nothing_in_a_message() -> None:
    assert PaftError("\x1b[2J\x9b\u202e\ud800\0 ünïcode\nnext").problems == [
        "\\x1b[2J\\x9b\\u202e\\ud800\\x00 ünïcode\nnext"
    ]


class Note(JsonFile):
    """A format with one text."""

    SCHEMA = 1
    text: str


def test_nor_in_what_a_run_folder_holds(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    file.write_text(json.dumps({"schema": 1, "text": "\x1b]0;x\x07\ud800"}))
    assert Note.read(file).text == "\\x1b]0;x\\x07\\ud800"


def test_a_tag_that_a_loader_does_not_know_cannot_be_constructed() -> None:
    assert not any(tag and "python" in tag for tag in LimitedLoader.yaml_constructors)


@pytest.mark.parametrize(
    ("line", "header"),
    [
        ("merge_method: ties", None),
        ("# mergekit-yaml 'unclosed", None),
        ("# mergekit-yaml '/a b/ties.yml' /out --random-seed 0", Header(("/a b/ties.yml", "/out"), seed=0)),
        ("# mergekit-yaml r o --random-seed=42", Header(("r", "o"), seed=42)),
        ("# mergekit-yaml r o --random-seed 4294967296", Header(("r", "o"))),
        (
            "# mergekit-yaml r o --lora-merge-cache=/c --lora-merge-dtype float32",
            Header(("r", "o"), Path("/c"), "float32"),
        ),
        ("# mergekit-yaml r o --lora-merge-cache", Header(("r", "o"))),
        ("# mergekit-yaml r o --trust-remote-code --cuda", Header(("r", "o"))),
    ],
)
def test_a_header_is_read_as_known_flags_and_nothing_else(line: str, header: Header | None) -> None:
    assert read_header(f"# PAFT\n{line}\nmerge_method: ties\n") == header


def test_nothing_of_a_recipe_is_run() -> None:
    package = Path(__file__).parent.parent / "paft_plugin" / "fusion"
    assert not [file for file in package.rglob("*.py") if "subprocess" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*)*x", "(a*)*b", "([a-z]+)*[0-9]", "("])
def test_a_regular_expression_without_end_is_refused(pattern: str) -> None:
    text = "a" * 60 + "!"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with contextlib.suppress(PaftError):  # some of them `regex` answers at once
        assert not matches(rf"(.*\.)?({pattern})", text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5


def test_a_regular_expression_matches_the_whole_text() -> None:
    assert matches(r"(.*\.)?(q_proj)", "model.layers.0.self_attn.q_proj")
    assert not matches(r"(.*\.)?(q_proj)", "model.q_proj_2")
