"""Plots of a study, with every seed as a point. What stands in `PLOTS` comes onto its page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paft_plugin.drawing import (
    COLOURS,
    INK,
    MUTED,
    PAPER,
    WIDE,
    Chart,
    Drawn,
    Missing,
    Plot,
    chart,
    joined,
    log_axis,
    new_figure,
    style_at,
)
from paft_plugin.formats import number
from paft_plugin.search.report import pareto_front
from paft_plugin.study.analysis import Analysis, Answered, StudyCurve, StudyRow
from paft_plugin.study.design import PRIMARY
from paft_plugin.study.effects import Level, seed_means
from paft_plugin.study.fronts import Front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, HEAD = 0.235, 0.9
"""Inches of a row of a chart with a row for each arm, and of what is above and below."""
MOST_PANELS = 4
ONE_TRIAL = "Every way has one trial, and so no front; its volume stands in the table."
GROUP_COLOURS = {"base": INK, "branch": COLOURS[0], "way": COLOURS[1], "control": COLOURS[2], "curve": COLOURS[3]}


@chart("scores", "The arms of the first table, every seed", "arms")
def score_chart(analysis: Analysis) -> Drawn | str:
    """A row for each arm of the main table, a panel for each goal: seeds as dots, the mean with its interval."""
    rows = analysis.main
    if not rows:
        return "No arm was scored."
    named = [PRIMARY, *(measure.name for measure in analysis.measures)][:MOST_PANELS]
    figure = new_figure(WIDE, HEAD + ROW * len(rows))
    panels = figure.subplots(1, len(named), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, named, strict=True):
        for place, row in enumerate(rows):
            if name in row.levels:
                _dots(axes, row.levels[name], place, GROUP_COLOURS[row.group])
        axes.set_xlabel(_with_direction(analysis, name))
        _row_axis(axes, [row.name for row in rows])
        for place in _borders(rows):
            axes.axhline(place - 0.5, color=MUTED, linewidth=0.6)
    return Drawn(figure, _seeds_said(analysis), f"Dot chart of {len(rows)} arms in {joined(named)}.", wide=True)


def _row_axis(axes: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _with_direction(analysis: Analysis, name: str) -> str:
    measure = next((one for one in analysis.measures if one.name == name), None)
    return name if measure is None else measure.axis_label


def _borders(rows: Sequence[StudyRow]) -> list[int]:
    return [place for place in range(1, len(rows)) if rows[place].group != rows[place - 1].group]


def _dots(axes: Axes, level: Level, place: float, colour: str) -> None:
    """Every seed as a dot, and the mean with its interval."""
    axes.scatter(
        list(level.seeds.values()), [place] * len(level.seeds), s=11, color=colour, alpha=0.45, linewidths=0, zorder=2
    )
    if level.interval is not None:
        axes.plot(level.interval, [place, place], color=colour, linewidth=1.1, zorder=3)
    axes.scatter([level.value], [place], marker="|", s=60, color=colour, linewidths=1.8, zorder=4)


def _seeds_said(analysis: Analysis) -> str:
    seeds = len(analysis.seeds)
    over = "over seeds and items" if seeds > 1 else "over items alone"
    return f"Dots: {'each of ' if seeds > 1 else ''}{seeds} seed{'s' * (seeds > 1)}; bars: the mean and its 95 % interval {over}."


@chart("differences", "The declared contrasts", "contrasts")
def contrast_chart(analysis: Analysis) -> Drawn | str:
    """A row for each contrast, in a panel for each measure: the difference, its interval, and the margin."""
    known = [one for one in analysis.answers if one.change is not None]
    if not known:
        return "No contrast was declared that could be tested."
    names = list(dict.fromkeys(one.contrast.measure for one in known))
    by_measure = [[one for one in known if one.contrast.measure == name] for name in names]
    figure = new_figure(WIDE, HEAD * len(names) + ROW * 1.3 * len(known))
    panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=[len(each) + 1 for each in by_measure])[:, 0]
    for axes, name, asked in zip(panels, names, by_measure, strict=True):
        for place, one in enumerate(asked):
            _effect(axes, analysis, one, place)
        axes.axvline(0, color=INK, linewidth=0.8)
        _row_axis(axes, [one.contrast.name for one in asked])
        axes.set_xlabel(f"{_with_direction(analysis, name)}: one − other")
    said = (
        "Small dots: seeds; bars: 95 % intervals, not corrected; grey: the margin. Filled: shown (Holm), or equivalent; "
        "open: not told apart."
    )
    return Drawn(figure, said, f"Chart of {len(known)} differences with their intervals.", wide=True)


def _effect(axes: Axes, analysis: Analysis, one: Answered, place: int) -> None:
    assert one.change is not None
    assert one.one is not None
    assert one.other is not None
    colours = {"better": COLOURS[2], "worse": COLOURS[1], "equivalent": COLOURS[0], "unclear": MUTED}
    colour = colours[one.verdict]
    if one.margin is not None:
        axes.fill_betweenx([place - 0.4, place + 0.4], -one.margin, one.margin, color=MUTED, alpha=0.18, linewidth=0)
    mine, others = (seed_means(analysis.scores, arm, one.contrast.measure) for arm in (one.one, one.other))
    seeds = [mine[seed] - others[seed] for seed in one.seeds]
    axes.scatter(seeds, [place + 0.25] * len(seeds), s=11, color=colour, alpha=0.6, linewidths=0, zorder=2)
    axes.plot(one.change.interval, [place, place], color=colour, linewidth=1.6, zorder=3)
    face = PAPER if one.verdict == "unclear" else colour
    axes.scatter([one.change.value], [place], s=34, color=face, edgecolors=colour, linewidths=1.2, zorder=4)


@chart("front-lines", "Fronts of skill and preference", "fronts")
def front_chart(analysis: Analysis) -> Drawn | str:
    """The fronts' arms by the scaled skill and preference, a panel for each form."""
    known = [front for front in analysis.fronts if front.goals[:2] == ("skill", "preference") and front.points]
    if not known:
        return "No way of combining has trials that were scored in both goals on validation items."
    if all(len(front.trials) < 2 for front in known):
        return ONE_TRIAL
    forms, ways = (list(dict.fromkeys(getattr(front, key) for front in known)) for key in ("form", "way"))
    figure = new_figure(WIDE, 4.2)
    panels = figure.subplots(1, len(forms), sharex=True, sharey=True, squeeze=False)[0]
    for axes, form in zip(panels, forms, strict=True):
        for front in known:
            if front.form == form:
                _front_line(axes, front, ways.index(front.way))
        axes.set_title(form or "every form", loc="left")
        axes.set_xlabel("skill: 0 the base, 1 the best branch")
    panels[0].set_ylabel("preference: 0 the base, 1 the best branch")
    for place, way in enumerate(ways):
        panels[0].plot([], [], label=way, **style_at(place).look)
    figure.legend(loc="outside upper center", ncols=min(len(ways), 6))
    said = (
        "Means over seeds on test items, of the trials that no other of their way beats on validation in any goal; a line "
        "joins those that none beats in these two. Best is right and up."
    )
    return Drawn(figure, said, f"Line chart of {len(known)} fronts.", wide=True)


def _front_line(axes: Axes, front: Front, place: int) -> None:
    """Every arm as a point, and a line through those that none of them beats in these two goals."""
    points, style = [point[:2] for point in front.points], style_at(place)
    line = sorted(points[at] for at in pareto_front(points, [True, True]))
    axes.plot(*zip(*line, strict=True), **style.look)
    across, upwards = zip(*points, strict=True)
    axes.scatter(across, upwards, s=18, marker=style.marker, color=style.colour, alpha=0.45, linewidths=0)


@chart("volumes", "Hypervolume of every way", "fronts")
def volume_chart(analysis: Analysis) -> Drawn | str:
    """A row for each way and form: seeds as dots, the mean with its interval."""
    known = [(front, front.volume) for front in analysis.fronts if front.volume is not None]
    if not known:
        return "No way of combining has a front."
    if all(len(front.trials) < 2 for front, _ in known):
        return ONE_TRIAL
    known.sort(key=lambda each: -each[1].value)
    forms = list(dict.fromkeys(front.form for front in analysis.fronts))
    figure = new_figure(WIDE, HEAD + ROW * len(known))
    axes = figure.subplots()
    for place, (front, volume) in enumerate(known):
        _dots(axes, volume, place, COLOURS[forms.index(front.form) % len(COLOURS)])
    _row_axis(axes, [f"{front.way}, {front.form}".rstrip(", ") for front, _ in known])
    axes.set_xlabel(f"hypervolume of {joined(known[0][0].goals)} (more is better)")
    best = f"{known[0][0].way}, {known[0][0].form}".rstrip(", ")
    said = f"Dots: seeds; bars: 95 % intervals over them. Greatest: {best}, {number(known[0][1].value)}."
    return Drawn(figure, said, f"Dot chart of the hypervolumes of {len(known)} fronts.", wide=True)


def curve_chart(curve: StudyCurve) -> Chart[Analysis]:
    """Scores by one setting, a panel for each goal, a line for each way."""

    @chart(f"curve-{curve.setting.replace('_', '-')}", f"Scores by {curve.setting}", "curves")
    def draw(analysis: Analysis) -> Drawn | str:
        shown = [point for points in curve.series.values() for point in points]
        if len({point.x for point in shown}) < 2:
            return f"One value of {curve.setting} was scored; its table has it."
        named = [PRIMARY, *(measure.name for measure in analysis.measures)]
        named = [name for name in named if any(name in point.levels for point in shown)][:MOST_PANELS]
        figure = new_figure(WIDE, 3.6)
        panels = figure.subplots(1, len(named), squeeze=False)[0]
        for axes, name in zip(panels, named, strict=True):
            nothing = _curve_axis(axes, [point.x for point in shown])
            for place, points in enumerate(curve.series.values()):
                known = [(point.x or nothing, point.levels[name]) for point in points if name in point.levels]
                _curve_line(axes, known, place)
            axes.set_xlabel(curve.setting)
            axes.set_title(_with_direction(analysis, name), loc="left")
        for place, series in enumerate(curve.series):
            panels[0].plot([], [], label=series, **style_at(place).look)
        figure.legend(loc="outside upper center", ncols=min(len(curve.series), 5))
        alt = f"Line charts of {joined(named)} by {curve.setting}."
        return Drawn(figure, _seeds_said(analysis), alt, wide=True)

    return draw


def _curve_axis(axes: Axes, places: Sequence[float]) -> float:
    """Logarithmic where the setting spans more than a decade; returns where 0 stands on it, which is left of all others."""
    above = [place for place in places if place > 0]
    if not above or max(above) <= 10 * min(above):
        return 0.0
    log_axis(axes, "x")
    nothing = min(above) / 6
    if min(places) == 0:
        axes.axvline(min(above) / 2.4, color=MUTED, linewidth=0.6, linestyle=":")
        axes.text(nothing, 0.02, "0", transform=axes.get_xaxis_transform(), ha="center", color=MUTED)
    return nothing


def _curve_line(axes: Axes, points: Sequence[tuple[float, Level]], place: int) -> None:
    if not points:
        return
    style = style_at(place)
    axes.plot([x for x, _ in points], [level.value for _, level in points], **style.look)
    for x, level in points:
        axes.scatter(
            [x] * len(level.seeds), list(level.seeds.values()), s=9, color=style.colour, alpha=0.4, linewidths=0
        )
        if level.interval is not None and all(map(math.isfinite, level.interval)):
            axes.plot([x, x], level.interval, color=style.colour, linewidth=0.8, alpha=0.7)


PLOTS = (score_chart, contrast_chart, front_chart, volume_chart)


def study_plots(analysis: Analysis, section: str) -> list[Plot | Missing]:
    """Those of one section."""
    charts: list[Chart[Analysis]] = [*PLOTS, *map(curve_chart, analysis.curves)]
    return [each(analysis) for each in charts if each.section == section]
