"""What a page takes besides tables: plots as SVG, and a user's Markdown as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from paft_plugin.drawing import Missing, Plot, as_svg


@dataclass(frozen=True)
class Shown:
    """A plot as the template takes it."""

    name: str
    title: str
    caption: str
    picture: Markup
    wide: bool


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
