"""What is written for people, filled into templates: HTML pages, Markdown, configs. A room keeps its own in `templates/`."""

from __future__ import annotations

from typing import Any

from paft_plugin import __version__


def render(room: str, template: str, **context: Any) -> str:
    """The template filled with `context` and with `version`, ours; in HTML all text is escaped.

    Args:
        room: The package that has it in its folder `templates/`, such as `paft_plugin.report`.
        template: Its file name there.
        context: What the template takes, all of it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader(room),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(version=__version__, **context)
