"""What is written for people, filled into templates: HTML pages, Markdown, configs. A room keeps its own in `templates/`."""

from __future__ import annotations

import re
from typing import Any

from paft_plugin import __version__

SHARED = "paft_plugin.report"
"""The package with the templates that all pages extend."""


def render(room: str, template: str, **context: Any) -> str:
    """The template filled with `context` and with `version`, ours; in HTML and Markdown no text becomes markup.

    Args:
        room: The package that has it in its folder `templates/`, such as `paft_plugin.report`; what pages share, that one has.
        template: Its file name there.
        context: What the template takes, all of it.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(room), PackageLoader(SHARED)]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(template).render(version=__version__, **context)
    return without_html(text) if template.endswith(".md") else text


_FENCED_OR_TAG = re.compile(
    r"(?P<code>^ {0,3}(?P<ticks>`{3,})[^`\n]*\n.*?^ {0,3}(?P=ticks)`*[ \t]*$"
    r"|^ {0,3}(?P<tildes>~{3,})[^\n]*\n.*?^ {0,3}(?P=tildes)~*[ \t]*$)"
    r"|<(?=[A-Za-z/!?])",
    re.DOTALL | re.MULTILINE,
)


def without_html(markdown: str) -> str:
    """Markdown whose text, which holds names out of the files of others, cannot begin a tag; fenced code of CommonMark stays.

    Code within a line does not: whether two backticks make code depends on all of the text around them.
    """
    lines = markdown.replace("\r\n", "\n").replace("\r", "\n")  # to CommonMark each ends a line
    return _FENCED_OR_TAG.sub(lambda found: found["code"] or "&lt;", lines)
