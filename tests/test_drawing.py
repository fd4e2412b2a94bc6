"""Names of points stay readable, off each other and off the marks, and series are told apart."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from paft_plugin.drawing import NamedPoint, common_style, label_points, new_figure, style_at


@pytest.mark.parametrize("seed", range(8))
def test_names_cover_neither_each_other_nor_a_mark(seed: int) -> None:
    rng = random.Random(seed)
    points = [NamedPoint(f"parallel-arm{place}", rng.random(), rng.random(), 0.02, 0.02) for place in range(7)]
    with common_style():
        figure = new_figure(height=3.8)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_xlim(-0.2, 1.2)
        axes.set_ylim(-0.2, 1.2)
        figure.draw_without_rendering()
        label_points(axes, points, points)
        canvas.draw()
        texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
        boxes = [Bbox(text.get_window_extent().get_points()) for text in texts]
        frame = axes.get_window_extent()
    assert sorted(name for text in texts for name in text.get_text().split("\n")) == [point.name for point in points]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for box in boxes:
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        assert not any(box.contains(*axes.transData.transform((point.x, point.y))) for point in points)


def test_points_in_one_place_share_a_list() -> None:
    with common_style():
        figure = new_figure()
        axes = figure.subplots()
        points = [NamedPoint(name, 0.5, 0.5, 0.0, 0.0) for name in ("a", "b")] + [NamedPoint("c", 0.9, 0.9, 0.0, 0.0)]
        figure.draw_without_rendering()
        label_points(axes, points, points)
    assert sorted(text.get_text() for text in axes.texts) == ["a\nb", "c"]


def test_series_that_go_by_their_place_are_told_apart() -> None:
    styles = [style_at(place) for place in range(49)]
    assert len({(style.colour, style.marker) for style in styles}) == 49
