"""The style that every plot shares, and plots as files: SVG that takes the page's colours, PNG for everywhere else.

Colours are Okabe and Ito's, which colour-blind people can tell apart; markers and lines differ as well, for print and everyone.
The same data gives the same bytes: no date, no version, no random identifier.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")

INK, MUTED, GRID, PAPER = "#1f2328", "#5b636d", "#d9dde2", "#ffffff"
CSS_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    **{colour: f"series-{place}" for place, colour in enumerate(COLOURS[:-1], 1)},
}
"""Colour in a figure → the CSS variable (without its dashes) that stands for it in a page."""

WIDTH, WIDE = 5.2, 10.6
"""Inches: a plot of half and of the full width of a page. Text of 9 points stays legible at both widths of a screen."""
PNG_DPI = 160
FONT_SIZE = 9


@dataclass(frozen=True)
class Style:
    """How one series is drawn."""

    colour: str
    marker: str
    line: str


@dataclass(frozen=True)
class Plot:
    """A figure with the words around it."""

    name: str
    """Of files and anchors: lower case and dashes."""
    title: str
    caption: str
    """What to see, with this run's own numbers."""
    alt: str
    """What kind of picture it is, for those who don't see it; the caption says the rest."""
    figure: Figure
    wide: bool = False


@dataclass(frozen=True)
class Missing:
    """A plot that cannot be drawn, and why, in one sentence."""

    name: str
    title: str
    why: str


FAMILIES = (
    ("base", Style(INK, "X", ":")),
    ("sft-l1", Style(COLOURS[1], "s", "--")),
    ("sft", Style(COLOURS[0], "o", "-")),
    ("sequential", Style(COLOURS[3], "D", ":")),
    ("parallel", Style(COLOURS[4], "v", "-")),
    ("paft", Style(COLOURS[1], "P", "--")),
)
PREFERENCE = Style(COLOURS[2], "^", "-.")


def style_of(name: str) -> Style:
    """The style of an arm or a branch: the same in every plot. What has no name of its own is a preference branch."""
    for family, style in FAMILIES:
        if name == family or name.startswith(f"{family}-"):
            return style
    return PREFERENCE


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    """`style_of` each name; if several have the same, all but the first get another one, in a free colour if there is any."""
    found: dict[str, Style] = {}
    for name in names:
        style = style_of(name)
        if style in found.values():
            colours = {other.colour for other in found.values()} | {style_of(later).colour for later in names}
            place = len(found)
            free = [colour for colour in COLOURS[:-1] if colour not in colours] or COLOURS[:-1]
            style = Style(free[place % len(free)], SHAPES[place % len(SHAPES)], LINES[place % len(LINES)])
        found[name] = style
    return found


RC = {
    "svg.fonttype": "none",
    "font.size": FONT_SIZE,
    "font.family": "DejaVu Sans",
    "axes.titlesize": FONT_SIZE + 1,
    "axes.labelsize": FONT_SIZE,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE - 1,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": PAPER,
    "mathtext.fontset": "dejavusans",
}
"""What `common_style` sets."""


@contextmanager
def common_style() -> Iterator[None]:
    """matplotlib's settings, in force while a plot is drawn (also a decorator: `@common_style()`) or written."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float = WIDTH, height: float = 3.2) -> Figure:
    """An empty figure of `width` × `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_number(value: float, _place: float | None = None) -> str:
    """For the ticks of a logarithmic axis: `1e-5`, `0.01`, `100`; matplotlib's own are formulas, set in a font of their own."""
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")


def whole_numbers(axis: Axis) -> None:
    """Label an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with few and plain labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(plain_number))
    axis.set_minor_formatter(NullFormatter())


def step_axis(axes: Axes) -> None:
    """Count optimizer steps on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("optimizer step")


def as_png(plot: Plot) -> bytes:
    """The plot on white paper, 160 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with common_style():
        FigureCanvasAgg(plot.figure)
        plot.figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(plot: Plot) -> str:
    """The plot as an element of a page: CSS variables for colours, the page's own font, no background, identifiers of its own."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": plot.name}):  # without it, identifiers are random
        FigureCanvasSVG(plot.figure)
        plot.figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _for_a_page(buffer.getvalue(), plot)


def _for_a_page(svg: str, plot: Plot) -> str:
    """What matplotlib writes, as an element of HTML."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{plot.name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{plot.name}-", svg)
    for colour, name in CSS_NAMES.items():
        svg = re.sub(colour, f"var(--{name}, {colour.lower()})", svg, flags=re.IGNORECASE)
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box
    opening = (
        f'<svg {view_box[0]} role="img" aria-label="{escape(plot.alt)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
