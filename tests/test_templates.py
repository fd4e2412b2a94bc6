"""What is filled into a template is text: no name out of a file of others becomes a tag."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from paft_plugin.templates import render, without_html

TAG = "<img src=x onerror=alert(1)>"
PIECES = [
    "`",
    "``",
    "```",
    "````",
    "~~~",
    "~~~~",
    "\n",
    "\n\n",
    "\r",
    " ",
    "    ",
    "\t",
    "\\",
    "|",
    "- ",
    "> ",
    "# ",
    "---",
]
PIECES += [TAG, "<b>", "</b>", "<!-- ", "-->", "<?x", "[a]: ", "|-|-|", "1. ", "sh", "a"]


def test_fenced_code_stays_and_no_text_has_a_tag() -> None:
    escaped = TAG.replace("<", "&lt;")
    assert without_html(f"# {TAG}\n\n| {TAG} | a |\n") == f"# {escaped}\n\n| {escaped} | a |\n"
    for code in (f"```yaml\n{TAG}\n```\n", f"text\n\n~~~\n```\n{TAG}\n~~~\n", f"````\n```\n{TAG}\n````"):
        assert without_html(code) == code


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
@example(f"a \\` {TAG} `")
@example(f"```\nx\n``` \n{TAG}\n```")
@example(f"``` `\n{TAG}\n```")
@example(f"` {TAG} ``")
@example(f"# `a\nb` x ` {TAG} `")
@example(f"~~~\n```\n~~~\n{TAG}\n```\n")
@example(f"```\r```\r{TAG}\n```")
def test_a_renderer_that_allows_html_finds_none(text: str) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(without_html(text))
    inner = [child for token in tokens for child in (token, *(token.children or ()))]
    assert not [token.content for token in inner if token.type.startswith("html")]


def test_templates_of_markdown_are_filled_so() -> None:
    record = {"seed": 1, "device": "<b>cpu</b>", "versions": {"<b>": "1"}, "findings": ["<script>"]}
    text = render("paft_plugin.fusion", "provenance.md", fingerprints={"<i>base": "abc"}, record=record)
    assert "<" not in text
    assert "&lt;script>" in text
    assert "&lt;i>base" in text
