"""Names beside the points of a chart, where they cover neither each other nor a mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paft_plugin.drawing import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in typographic points."""
FONT, LINE_HEIGHT, CHARACTER = 8, 9.6, 4.7  # typographic points; a character's width is that of the widest common fonts
TOGETHER = 12  # typographic points: points nearer than that share one list of names
NEAR = 16  # a name farther from its point than that gets a line to it
REACHES = (9, 15, 24, 36, 50, 66, 84, 104)
DIRECTIONS = tuple((math.cos(math.pi / 8 * step), math.sin(math.pi / 8 * step)) for step in range(16))


@dataclass(frozen=True)
class Point:
    """A named point and the half lengths of its error bars, in the data's units."""

    name: str
    x: float
    y: float
    dx: float
    dy: float


def label_points(axes: Axes, points: Sequence[Point], marks: Sequence[Point]) -> None:
    """Name `points` in `axes`, which have been laid out.

    Args:
        axes: Their limits and place must be final.
        points: What to name.
        marks: What no name may cover, points and error bars.
    """
    scale = 72 / axes.figure.dpi
    taken = [box for mark in marks for box in _mark_boxes(axes, mark, scale)]
    left, bottom, right, top = (float(edge) * scale for edge in axes.bbox.extents)
    for group in _groups(axes, points, scale):
        x, y = _place(axes, group[0], scale)
        text = "\n".join(point.name for point in group)
        width = max(len(point.name) for point in group) * CHARACTER + 2
        height = LINE_HEIGHT * len(group) + 1
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
            fontsize=FONT, linespacing=1.15, color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 4} if reach > NEAR else None,
        )  # fmt: skip


def _groups(axes: Axes, points: Sequence[Point], scale: float) -> list[list[Point]]:
    """Points that lie on each other, the largest group first."""
    groups: list[list[Point]] = []
    for point in points:
        place = _place(axes, point, scale)
        near = next((group for group in groups if math.dist(_place(axes, group[0], scale), place) < TOGETHER), None)
        if near is None:
            groups.append([point])
        else:
            near.append(point)
    return sorted(groups, key=len, reverse=True)


def _place(axes: Axes, point: Point, scale: float) -> tuple[float, float]:
    x, y = axes.transData.transform((point.x, point.y)) * scale
    return float(x), float(y)


def _mark_boxes(axes: Axes, point: Point, scale: float) -> list[Box]:
    """What a point and its error bars cover."""
    ends = [
        (point.x - point.dx, point.y),
        (point.x + point.dx, point.y),
        (point.x, point.y - point.dy),
        (point.x, point.y + point.dy),
    ]
    (x0, y), (x1, _), (x, y0), (_, y1) = ((float(a), float(b)) for a, b in axes.transData.transform(ends) * scale)
    return [(x0, y - 2, x1, y + 2), (x - 2, y0, x + 2, y1), _box(x, y, 12, 12)]


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box) -> float:
    """The area that both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
