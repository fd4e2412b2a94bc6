"""A page as one self-contained HTML file: tables and plots put into a template."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from paft_plugin import __version__
from paft_plugin.drawing import Missing, Plot, as_svg
from paft_plugin.report.differences import Difference

BLANK = "–"
VERDICT_WORDS = {"best": "", "better": "▲ better", "worse": "▼ worse", "same": "= no difference"}


@dataclass(frozen=True)
class Column:
    """A heading; numbers are set to the right and sorted from the greatest."""

    heading: str
    is_number: bool = True


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what its column is sorted by."""

    text: str
    order: float | str | None = None
    """A number; `""` for what was not measured, which stays last; None to sort by the text."""
    verdict: str = ""
    detail: str = ""
    """A second line, smaller."""

    @property
    def word(self) -> str:
        return VERDICT_WORDS[self.verdict]


@dataclass(frozen=True)
class Row:
    """The first cell is the row's heading; `tag` stands beside it."""

    cells: Sequence[Cell]
    is_marked: bool = False
    tag: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption, which also names it to screen readers."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""

    @property
    def is_sortable(self) -> bool:
        return len(self.rows) > 1


@dataclass(frozen=True)
class Shown:
    """A plot as the template takes it."""

    name: str
    title: str
    caption: str
    picture: Markup
    wide: bool


def unbroken(text: str) -> str:
    """`text` that no line breaks at its hyphens: `1e-5` in a narrow heading."""
    return text.replace("-", "\N{NON-BREAKING HYPHEN}")


def number_cell(value: float | None, form: str) -> Cell:
    """`value` in a format such as `{:.1%}`, or a blank."""
    if value is None or not math.isfinite(value):
        return Cell(BLANK, "")
    return Cell(form.format(value), value)


def difference_cell(found: Difference | None) -> Cell:
    """A difference with its error and its verdict in words."""
    return Cell(BLANK, "") if found is None else Cell(str(found), found.value, found.verdict)


def shown(plots: Sequence[Plot | Missing]) -> tuple[list[Shown], list[Missing]]:
    """Plots for the template, and those that could not be drawn."""
    drawn = [
        # Ours, from matplotlib, with every name in it escaped: the one thing here that is markup already.
        Shown(plot.name, plot.title, plot.caption, Markup(as_svg(plot)), plot.wide)  # noqa: S704
        for plot in plots
        if isinstance(plot, Plot)
    ]
    return drawn, [plot for plot in plots if isinstance(plot, Missing)]


def prose(text: str) -> Markup:
    """Plain Markdown as HTML: paragraphs, lists, `**strong**` and code in backticks; anything else stays as it is written."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines and all(re.match(r"[-*] ", line) or line.startswith(" ") for line in lines):
            items = re.split(r"^[-*] ", block, flags=re.MULTILINE)[1:]
            blocks.append(f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>")
        elif lines:
            blocks.append(f"<p>{_inline(block)}</p>")
    return Markup("\n".join(blocks))  # noqa: S704 - `_inline` has escaped what it holds


def _inline(text: str) -> str:
    escaped = str(escape(" ".join(text.split())))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped))


def render(template: str, **context: Any) -> str:
    """The page `template` filled with `context`; all text is escaped."""
    environment = Environment(
        loader=PackageLoader("paft_plugin.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **context)
