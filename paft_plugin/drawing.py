"""The style that every plot shares, names beside points, and plots as files: SVG that takes the page's colours, PNG elsewhere.

Colours are Okabe and Ito's, which colour-blind people can tell apart; markers and lines differ as well, for print and everyone.
The same data gives the same bytes: no date, no version, no random identifier.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from paft_plugin.formats import plain_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from paft_plugin.evaluation.arms import Arm

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

    @property
    def look(self) -> dict[str, Any]:
        """As matplotlib takes it for a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line}


class Drawn(NamedTuple):
    """A figure with what is said of it."""

    figure: Figure
    caption: str
    """What to see, with this run's own numbers."""
    alt: str
    """What kind of picture it is, for those who don't see it; the caption says the rest."""
    wide: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot as it goes onto a page or into a file."""

    name: str
    """Of files and anchors: lower case and dashes."""
    title: str
    figure: Figure
    caption: str
    alt: str
    wide: bool


@dataclass(frozen=True)
class Missing:
    """A plot that cannot be drawn, and why, in one sentence."""

    name: str
    title: str
    why: str


Source = TypeVar("Source")


@dataclass(frozen=True)
class Chart(Generic[Source]):
    """A kind of plot: what it is called, where it is shown, and the function that draws it (see `chart`)."""

    name: str
    title: str
    section: str
    """Of the pages that show it."""
    draw: Callable[[Source], Drawn | str]
    """Draws the data, or says in one sentence why there is nothing to draw."""

    def __call__(self, source: Source) -> Plot | Missing:
        """Draw `source` in the style that all plots share."""
        with common_style():
            drawn = self.draw(source)
        return Missing(self.name, self.title, drawn) if isinstance(drawn, str) else Plot(self.name, self.title, *drawn)


def chart(name: str, title: str, section: str) -> Callable[[Callable[[Source], Drawn | str]], Chart[Source]]:
    """Make the decorated function a `Chart`; it is shown once it stands in its module's list."""
    return lambda draw: Chart(name, title, section, draw)


STYLES = {
    ("base", False): Style(INK, "X", ":"),
    ("sft", False): Style(COLOURS[0], "o", "-"),
    ("sft", True): Style(COLOURS[1], "s", "--"),
    ("preference", False): Style(COLOURS[2], "^", "-."),
    ("sequential", False): Style(COLOURS[3], "D", ":"),
    ("joint", False): Style(COLOURS[5], "p", "-."),
    ("disjoint", False): Style(COLOURS[5], "*", ":"),
    ("fused", False): Style(COLOURS[4], "v", "-"),
    ("fused", True): Style(COLOURS[1], "P", "--"),
}
"""(Role of a branch or kind of another arm, whether it was trained with the penalty) → style."""


def style_of(arm: Arm) -> Style:
    """The style of an arm: the same in every plot."""
    what = arm.role or arm.kind
    plain = STYLES.get((what, False), STYLES["preference", False])
    return STYLES.get((what, arm.penalised), plain)


def styles_of(arms: Sequence[Arm]) -> dict[str, Style]:
    """Name → `style_of` each arm; if several have the same, all but the first get another, in a free colour if there is any."""
    found: dict[str, Style] = {}
    for arm in arms:
        style = style_of(arm)
        if style in found.values():
            colours = {other.colour for other in found.values()} | {style_of(later).colour for later in arms}
            place = len(found)
            free = [colour for colour in COLOURS[:-1] if colour not in colours] or COLOURS[:-1]
            style = Style(free[place % len(free)], SHAPES[place % len(SHAPES)], LINES[place % len(LINES)])
        found[arm.name] = style
    return found


def style_at(place: int) -> Style:
    """The style of a series that goes by its place alone: the first 49 differ in colour or marker."""
    turn = place // len(COLOURS)
    return Style(COLOURS[place % len(COLOURS)], SHAPES[(place + turn) % len(SHAPES)], LINES[turn % len(LINES)])


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
    """matplotlib's settings, in force while a plot is drawn or written."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float = WIDTH, height: float = 3.2) -> Figure:
    """An empty figure of `width` × `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def whole_numbers(axis: Axis) -> None:
    """Label an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with few and plain labels: matplotlib's own are formulas, set in a font of their own."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_formatter(NullFormatter())


def step_axis(axes: Axes) -> None:
    """Count optimizer steps on the x axis."""
    whole_numbers(axes.xaxis)
    axes.set_xlabel("optimizer step")


Box = tuple[float, float, float, float]
"""Left, bottom, right, top in typographic points."""
# Typographic points; a character's width is that of the widest common fonts.
LABEL_SIZE, LINE_HEIGHT, CHARACTER = 8, 9.6, 4.7
NEAR = 16  # typographic points: a name farther from its point than that gets a line to it
REACHES = (9, 15, 24, 36, 50, 66, 84, 104)
DIRECTIONS = tuple((math.cos(math.pi / 8 * step), math.sin(math.pi / 8 * step)) for step in range(16))


@dataclass(frozen=True)
class NamedPoint:
    """A point with a name, and the half lengths of its error bars, in the data's units."""

    name: str
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0
    is_bold: bool = False


def label_points(
    axes: Axes, points: Sequence[NamedPoint], marks: Sequence[NamedPoint], together: float = 12, between: str = "\n"
) -> None:
    """Write each point's name beside it, where it covers no other name and none of `marks` as far as there is room.

    The limits and the place of the axes must be final. Points nearer than `together` (in typographic points) share a list of
    names, with `between` between them.
    """
    scale = 72 / axes.figure.dpi
    taken = [box for mark in marks for box in _mark_boxes(axes, mark, scale)]
    left, bottom, right, top = (float(edge) * scale for edge in axes.bbox.extents)
    for group in _groups(axes, points, scale, together):
        x, y = _place(axes, group[0], scale)
        text = between.join(point.name for point in group)
        lines = text.split("\n")
        width, height = max(map(len, lines)) * CHARACTER + 2, LINE_HEIGHT * len(lines) + 1
        offsets = [
            (across * (width / 2 + reach), up * (height / 2 + reach), reach)
            for reach in REACHES
            for across, up in DIRECTIONS
        ]
        boxes = [_box(x + dx, y + dy, width, height) for dx, dy, _ in offsets]
        inside = [left <= box[0] and box[2] <= right and bottom <= box[1] and box[3] <= top for box in boxes]
        # Where nothing is free, cover as little as can be.
        best = min(
            range(len(boxes)),
            key=lambda place: (not inside[place], sum(_overlap(boxes[place], other) for other in taken), place),
        )
        taken.append(boxes[best])
        dx, dy, reach = offsets[best]
        axes.annotate(
            text, (group[0].x, group[0].y), xytext=(dx, dy), textcoords="offset points", ha="center", va="center",
            fontsize=LABEL_SIZE, linespacing=1.15, color=INK,
            fontweight="bold" if any(point.is_bold for point in group) else "normal",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 4} if reach > NEAR else None,
        )  # fmt: skip


def _groups(axes: Axes, points: Sequence[NamedPoint], scale: float, together: float) -> list[list[NamedPoint]]:
    """Points that lie on each other, the largest group first."""
    groups: list[list[NamedPoint]] = []
    for point in points:
        place = _place(axes, point, scale)
        near = next((group for group in groups if math.dist(_place(axes, group[0], scale), place) <= together), None)
        if near is None:
            groups.append([point])
        else:
            near.append(point)
    return sorted(groups, key=len, reverse=True)


def _place(axes: Axes, point: NamedPoint, scale: float) -> tuple[float, float]:
    x, y = axes.transData.transform((point.x, point.y)) * scale
    return float(x), float(y)


def _mark_boxes(axes: Axes, point: NamedPoint, scale: float) -> list[Box]:
    """What a point and its error bars cover."""
    corners = [(point.x - point.dx, point.y - point.dy), (point.x + point.dx, point.y + point.dy)]
    (left, bottom), (right, top) = (map(float, corner) for corner in axes.transData.transform(corners) * scale)
    x, y = _place(axes, point, scale)
    return [(left, y - 2, right, y + 2), (x - 2, bottom, x + 2, top), _box(x, y, 12, 12)]


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box) -> float:
    """The area that both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


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
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
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
