"""`front.png`: every trial by its scores, and the front; with one objective its course over the trials."""

from __future__ import annotations

import io
import math
import textwrap
from itertools import combinations
from typing import TYPE_CHECKING, Any

from paft_plugin.drawing import NamedPoint, Style, label_points, new_figure, style_at
from paft_plugin.files import write_bytes
from paft_plugin.search.report import PLOT, Outcome, pareto_front
from paft_plugin.search.study import Finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 3
Point = tuple[float, float]


def draw_front(outcome: Outcome) -> None:
    """Write the plot of a search that has a scored trial."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _course(outcome) if len(outcome.goals) == 1 else _pairs(outcome)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Without the version and the date, the same search gives the same bytes.
    figure.savefig(buffer, dpi=150, metadata={"Software": None})
    write_bytes(outcome.folder / PLOT, buffer.getvalue())


def _pairs(outcome: Outcome) -> Figure:
    """One panel for each pair of objectives."""
    pairs = list(combinations(range(len(outcome.goals)), 2))
    columns = min(len(pairs), MOST_COLUMNS)
    rows = math.ceil(len(pairs) / columns)
    figure = new_figure(max(5.5 * columns, 7.0), 4.6 * rows + 1.2)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[len(pairs) :]:
        unused.set_visible(False)
    _legend(figure, outcome, axes[0])
    _caption(
        figure,
        f"{len(outcome.scored)} trials on validation items. Filled and numbered: the front, which no other trial beats; grey "
        "bars: one standard error; bold: the one that gives up least. Ringed: a method at its defaults. A line joins what "
        "nothing beats in the panel's two objectives. Trials that are worse than the axes reach are left out.",
    )
    for place, panel in zip(pairs, axes, strict=False):
        _panel(figure, panel, outcome, *place)
    return figure


def _panel(figure: Figure, axes: Axes, outcome: Outcome, first: int, second: int) -> None:
    """Draw the front, the defaults and what lies between."""
    goals = outcome.goals[first], outcome.goals[second]
    points = [(scores[first], scores[second]) for scores in outcome.scores]
    line = sorted(points[place] for place in pareto_front(points, [goal.higher_is_better for goal in goals]))
    axes.plot(*zip(*line, strict=True), color="0.6", linewidth=1, zorder=1)
    front, start = {trial.number for trial in outcome.front}, outcome.start
    marks = []
    shown = []
    for trial, point in zip(outcome.scored, points, strict=True):
        _point(axes, outcome, trial, point, trial.number in front)
        if trial.number in front:
            dx, dy = (trial.stderr[place] or 0.0 for place in (first, second))
            axes.errorbar(*point, xerr=dx, yerr=dy, color="0.8", linewidth=0.8, zorder=0)
            marks.append(NamedPoint(str(trial.number), *point, dx, dy, is_bold=trial == start))
        else:
            marks.append(NamedPoint("", *point))
        if trial.number in front or trial.is_default:
            shown.append(point)
    axes.set_xlim(*_limits([x for x, _ in shown]))
    axes.set_ylim(*_limits([y for _, y in shown]))
    axes.set_xlabel(goals[0].axis_label)
    axes.set_ylabel(goals[1].axis_label)
    figure.draw_without_rendering()  # only then is it known where a point lies
    label_points(axes, [mark for mark in marks if mark.name], marks, together=0, between=", ")


def _limits(values: list[float]) -> tuple[float, float]:
    """An axis around what counts; the trials far below it would only squeeze that together."""
    low, high = min(values), max(values)
    margin = 0.15 * (high - low) or 0.05 * (abs(high) or 1.0)
    return low - margin, high + margin


def _course(outcome: Outcome) -> Figure:
    """One objective: each trial's score, and the best so far."""
    (goal,) = outcome.goals
    figure = new_figure(8.0, 5.4)
    axes = figure.subplots()
    best: list[float] = []
    front = {trial.number for trial in outcome.front}
    for trial, (score,) in zip(outcome.scored, outcome.scores, strict=True):
        best.append((max if goal.higher_is_better else min)([*best[-1:], score]))
        _point(axes, outcome, trial, (trial.number, score), trial.number in front)
    axes.step([trial.number for trial in outcome.scored], best, where="post", color="0.6", linewidth=1, zorder=1)
    axes.set_xlabel("trial")
    axes.set_ylabel(goal.axis_label)
    axes.margins(0.08)
    _legend(figure, outcome, axes)
    _caption(
        figure,
        f"{len(outcome.scored)} trials on validation items. Filled: the best; line: the best so far. "
        "Ringed: a method at its defaults.",
    )
    return figure


def _point(axes: Axes, outcome: Outcome, trial: Finished, point: Point, on_front: bool) -> None:
    style = _style(outcome, trial.method)
    look: dict[str, Any] = {"s": 34, "facecolors": "none", "alpha": 0.75, "zorder": 2}
    if on_front:
        look = {"s": 64, "facecolors": style.colour, "alpha": 1.0, "zorder": 3}
    axes.scatter(*point, marker=style.marker, edgecolors=style.colour, linewidths=1.2, **look)
    if trial.is_default:
        axes.scatter(*point, marker="o", s=170, facecolors="none", edgecolors="black", linewidths=0.8, zorder=4)


def _style(outcome: Outcome, method: str) -> Style:
    return style_at(list(outcome.request.search.methods).index(method))


def _legend(figure: Figure, outcome: Outcome, axes: Axes) -> None:
    used = [method for method in outcome.request.search.methods if any(t.method == method for t in outcome.scored)]
    for method in used:
        style = _style(outcome, method)
        axes.scatter([], [], marker=style.marker, color=style.colour, label=method)
    figure.legend(loc="outside upper center", ncols=min(len(used), 5), frameon=False)


def _caption(figure: Figure, text: str) -> None:
    width = int(figure.get_figwidth() * 14)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=9, x=0.02, ha="left")
