"""What is filled into a template is text: no name out of a file of others becomes a tag."""

from __future__ import annotations

from paft_plugin.templates import render, without_html


def test_markdown_has_no_tag_outside_of_code() -> None:
    tag = "<img src=x onerror=alert(1)>"
    escaped = tag.replace("<", "&lt;")
    assert without_html(f"# {tag}\n\n| {tag} | `{tag}` |\n") == f"# {escaped}\n\n| {escaped} | `{tag}` |\n"
    code = f"---\nname: {tag}\n---\n\n```yaml\n{tag}\n```\n"
    assert without_html(code) == code
    assert without_html(f"a `x`{tag}` b") == f"a `x`{escaped}` b"


def test_templates_of_markdown_are_filled_so() -> None:
    record = {"seed": 1, "device": "<b>cpu</b>", "versions": {"<b>": "1"}, "findings": ["<script>"]}
    text = render("paft_plugin.fusion", "provenance.md", fingerprints={"<i>base": "abc"}, record=record)
    assert "<" not in text
    assert "&lt;script>" in text
    assert "&lt;i>base" in text
