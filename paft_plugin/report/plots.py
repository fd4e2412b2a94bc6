"""Plots of a run: what its arms trade, and how its branches trained. What stands in `PLOTS` comes onto the run's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paft_plugin.drawing import (
    FONT_SIZE,
    INK,
    MUTED,
    PAPER,
    WIDE,
    WIDTH,
    Chart,
    Drawn,
    Missing,
    NamedPoint,
    Plot,
    Style,
    chart,
    joined,
    label_points,
    log_axis,
    new_figure,
    step_axis,
    style_of,
    styles_of,
)  # fmt: skip
from paft_plugin.evaluation.arms import Arm, arm_named
from paft_plugin.evaluation.results import ArmResult, Measure, Results, branch_reference
from paft_plugin.formats import number, plain_number, share, signed
from paft_plugin.inspection.plots import MIDDLE, ON_DARK, ON_LIGHT, luminance
from paft_plugin.inspection.training_log import Curve
from paft_plugin.report.choice import Choice
from paft_plugin.report.differences import silent_measures
from paft_plugin.search.alpha_curve import RULE, AlphaCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 3  # arms close together that still have room for their names


@dataclass(frozen=True)
class RunData:
    """What is drawn of a run."""

    results: Results
    choice: Choice
    curves: Sequence[Curve] = ()
    """Of its branches, as far as anything was logged."""
    targets: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Branch → (threshold, sparsity that it was to end at), where it had a target."""
    ways: Sequence[AlphaCurve] = ()
    """From an SFT branch to the preference branch, of the arms that are a point on the way."""

    def arm(self, name: str) -> Arm:
        """The arm or branch of that name."""
        return arm_named(name, [one.arm for one in self.results.arms])


@chart("tax", "What alignment costs", "arms")
def tax_chart(run: RunData) -> Drawn | str:
    """Skill against preference, one point an arm, with its 95 % intervals; where arms crowd, that part enlarged.

    Of more than two goals, a map with a row for each arm.
    """
    results, choice = run.results, run.choice
    silent = silent_measures(results)
    skills, preferences = (
        [results.measure(name) for name in names if name not in silent]
        for names in (results.skills, results.preferences)
    )
    if len(skills) + len(preferences) > 2:
        return _goal_map(results, choice, [*skills, *preferences])
    if not skills or not preferences:
        return "No measure of a skill, or none of a preference, was named or tells anything."
    goals = skills[0], preferences[0]
    points = [_point_of(arm, goals) for arm in results.arms if all(goal.name in arm.scores for goal in goals)]
    if len(points) < 2:
        return "Fewer than two arms have been scored on both the skill and the preference."
    crowd = _crowd(points, goals)
    figure = new_figure(WIDE if crowd else WIDTH, 3.8)
    panels = figure.subplots(1, 2 if crowd else 1, squeeze=False)[0]
    ringed = choice.arm.name if choice.arm is not None else ""
    for axes, drawn in zip(panels, (points, crowd), strict=False):
        for point in drawn:
            _draw_point(axes, point, style_of(run.arm(point.name)), is_ringed=point.name == ringed)
        axes.set_xlabel(goals[0].axis_label)
        axes.set_ylabel(goals[1].axis_label)
        axes.margins(0.14)
    if crowd:
        panels[0].indicate_inset(bounds=_bounds(panels[1]), edgecolor=MUTED, linestyle="--", alpha=1)
        panels[0].set_title("All arms", loc="left")
        panels[1].set_title("The dashed part, enlarged", loc="left")
    figure.draw_without_rendering()  # only then is it known where a point lies
    label_points(panels[0], [point for point in points if point not in crowd], points)
    if crowd:
        label_points(panels[1], crowd, crowd)
    alt = f"Scatter chart of {len(points)} arms: {goals[0].name} across, {goals[1].name} upwards."
    return Drawn(figure, _tax_caption(results, choice, *goals), alt, bool(crowd))


def _goal_map(results: Results, choice: Choice, goals: Sequence[Measure]) -> Drawn | str:
    """Every arm's score in every goal, the darker the more of what the best arm gained over the base it has."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    arms = [arm for arm in results.arms if any(goal.name in arm.scores for goal in goals)]
    if len(arms) < 2:
        return "Fewer than two arms have been scored."
    ends = {goal.name: _ends(results, arms, goal) for goal in goals}
    parts = np.array([[_part(arm.scores.get(goal.name), *ends[goal.name]) for goal in goals] for arm in arms])
    longest = max(len(arm.name) for arm in arms)
    figure = new_figure(min(WIDE, max(WIDTH, 0.7 + 0.075 * longest + 0.85 * len(goals))), 1.2 + 0.27 * len(arms))
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("kept", GOAL_SHADES)
    image = axes.imshow(np.ma.masked_invalid(parts), aspect="auto", cmap=shades, vmin=-1, vmax=1)
    for row, arm in enumerate(arms):
        for column, goal in enumerate(goals):
            if goal.name in arm.scores:
                is_light = luminance(tuple(shades(image.norm(parts[row, column])))[:3]) > MIDDLE
                score = axes.text(
                    column, row, number(arm.scores[goal.name]), ha="center", va="center", fontsize=FONT_SIZE - 1
                )
                score.set_color(ON_LIGHT if is_light else ON_DARK)
    axes.set_xticks(range(len(goals)), [goal.name for goal in goals], rotation=30, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(visible=False)
    if choice.arm is not None:
        axes.get_yticklabels()[[arm.name for arm in arms].index(choice.arm.name)].set_fontweight("bold")
    said = "Blue: the share of the best arm's gain over the base that an arm has; orange: worse than the base."
    said += "" if choice.arm is None else f" Bold: {choice.arm.name}."
    alt = f"Map of {len(arms)} arms (rows) and what each has of {len(goals)} goals (columns)."
    return Drawn(figure, said, alt, wide=len(goals) > 5)


GOAL_SHADES = ("#D55E01", "#fffdfa", "#0072B3")
"""Worse than the base, as the base, as the best arm. Not quite `COLOURS`: a page with another background would change those."""


def _ends(results: Results, arms: Sequence[ArmResult], goal: Measure) -> tuple[float, float]:
    """A goal's scores of the base (or else the worst arm) and of the best."""
    sign = 1 if goal.higher_is_better else -1
    scores = sorted((arm.scores[goal.name] for arm in arms if goal.name in arm.scores), key=lambda score: sign * score)
    base = results.first("base")
    return (base.scores.get(goal.name, scores[0]) if base else scores[0]), scores[-1]


def _part(score: float | None, start: float, best: float) -> float:
    """Where a score lies between the base's (0) and the best (1); as far below the base is -1."""
    if score is None:
        return math.nan
    return max(-1.0, min(1.0, (score - start) / (best - start))) if best != start else 0.0


def _point_of(arm: ArmResult, goals: tuple[Measure, Measure]) -> NamedPoint:
    x, y = (arm.scores[goal.name] for goal in goals)
    dx, dy = (arm.reach(goal.name) or 0.0 for goal in goals)
    return NamedPoint(arm.name, x, y, dx, dy)


def _crowd(points: Sequence[NamedPoint], goals: tuple[Measure, Measure]) -> list[NamedPoint]:
    """The arms in the best third of both measures, if they are too many to name there; otherwise none."""

    def is_good(place: int, value: float) -> bool:
        values = [(point.x, point.y)[place] for point in points]
        low, high = min(values), max(values)
        best = high if goals[place].higher_is_better else low
        return abs(value - best) <= (high - low) / 3

    good = [point for point in points if is_good(0, point.x) and is_good(1, point.y)]
    return good if MANY <= len(good) < len(points) else []


def _bounds(axes: Axes) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of what `axes` show."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return left, bottom, right - left, top - bottom


def _draw_point(axes: Axes, point: NamedPoint, style: Style, is_ringed: bool) -> None:
    at, colour = (point.x, point.y), style.colour
    axes.errorbar(*at, xerr=point.dx, yerr=point.dy, color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    axes.scatter(*at, marker=style.marker, s=42, color=colour, edgecolors=PAPER, linewidths=0.6, zorder=3)
    if is_ringed:
        axes.scatter(*at, marker="o", s=170, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)


def _tax_caption(results: Results, choice: Choice, skill: Measure, preference: Measure) -> str:
    corner = f"{'right' if skill.higher_is_better else 'left'} and {'up' if preference.higher_is_better else 'down'}"
    said = [f"Best is {corner}; bars are 95 % intervals."]
    sequential, reference = results.first("sequential"), branch_reference(results.arms, skill)
    if sequential is not None and skill.name in sequential.taxes and reference is not None:
        said.append(
            f"Sequential training ends at {_point(sequential, skill, preference)}, an alignment tax of "
            f"{signed(sequential.taxes[skill.name])} against {reference.name}."
        )
    if choice.arm is not None and choice.arm is not sequential:
        said.append(f"Ringed: {choice.arm.name}, {_point(choice.arm, skill, preference)}.")
    return " ".join(said)


def _point(arm: ArmResult, skill: Measure, preference: Measure) -> str:
    known = [(m.name, arm.scores[m.name]) for m in (skill, preference) if m.name in arm.scores]
    return joined([f"{name} {number(score)}" for name, score in known]) if known else "no score"


@chart("strength", "Strength and sparsity over training", "training")
def strength_chart(run: RunData) -> Drawn | str:
    """λ above, sparsity below, over the steps of every branch with a penalty."""
    penalised = [curve for curve in run.curves if any(map(math.isfinite, curve.lambda_)) and curve.sparsity]
    if not penalised:
        return "No branch has a record of λ: none was trained with the penalty."
    are_many = len(penalised) >= MANY
    figure = new_figure(height=3.6 + (0.2 * math.ceil(len(penalised) / 2) if are_many else 0))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    styles = styles_of([run.arm(curve.branch) for curve in penalised])
    said = []
    for curve in penalised:
        style, target = styles[curve.branch], run.targets.get(curve.branch)
        threshold = target[0] if target and target[0] in curve.sparsity else min(curve.sparsity, key=float)
        above.plot(*_known(curve.steps, curve.lambda_), **style.look)
        label = f"{curve.branch}, |δ| ≤ {plain_number(float(threshold))}"
        below.plot(*_known(curve.steps, curve.sparsity[threshold]), label=label, **style.look)
        if target:
            below.axhline(target[1], color=style.colour if are_many else MUTED, linewidth=0.9, linestyle=":", zorder=1)
        said.append(_strength_said(curve, threshold, target))
    _strength_axis(above, [strength for curve in penalised for strength in curve.lambda_])
    above.set_ylabel("λ")
    below.set_ylabel("sparsity")
    below.set_ylim(-0.02, 1.02)
    step_axis(below)
    if are_many:
        figure.legend(loc="outside upper center", ncols=2)
    else:
        below.legend(loc="best")
    return Drawn(figure, " ".join(said), "Two line charts over the optimizer steps: λ above, sparsity below.")


def _strength_axis(axes: Axes, strengths: Sequence[float]) -> None:
    """Logarithmic where λ moved over more than a decade, once it was there: a controller waits with it for a step or two."""
    known = [strength for strength in strengths if math.isfinite(strength)]
    there = [strength for strength in known if strength > 0]
    if there and max(there) > 10 * min(there):
        log_axis(axes, "y")
    else:
        axes.set_ylim(0, 1.5 * max(known) or 1.0)
        axes.locator_params(axis="y", nbins=4)
        axes.yaxis.set_major_formatter(lambda value, _: plain_number(value))


def _strength_said(curve: Curve, threshold: str, target: tuple[str, float] | None) -> str:
    _, strengths = _known(curve.steps, curve.lambda_)
    steps, shares = _known(curve.steps, curve.sparsity[threshold])
    low, high = min(strengths), max(strengths)
    moved = f"λ stays at {low:.3g}" if low == high else f"λ goes from {strengths[0]:.3g} to {strengths[-1]:.3g}"
    said = f"{curve.branch}: {moved}"
    if shares:
        said += (
            f" while the sparsity at |δ| ≤ {plain_number(float(threshold))} goes from {share(shares[0])} "
            f"(step {steps[0]}) to {share(shares[-1])} (step {steps[-1]})"
        )
    return said + (f"; dotted: its target, {share(target[1], 0)}." if target else ".")


@chart("loss", "Loss with and without the penalty", "training")
def loss_chart(run: RunData) -> Drawn | str:
    """The task loss of SFT with and without the penalty, and what the penalised branch minimises in sum."""
    trained = [
        (curve, arm)
        for curve in run.curves
        if (arm := run.arm(curve.branch)).is_sft and len(_known(curve.steps, curve.loss)[0]) > 1
    ]
    if not trained:
        return "Neither a checkpoint nor a log of an SFT branch holds losses."
    figure = new_figure()
    axes = figure.subplots()
    styles = styles_of([arm for _, arm in trained])
    for curve, arm in trained:
        style, known = styles[arm.name], _known(curve.steps, curve.loss)
        axes.plot(*known, **style.look, label=f"{curve.branch}: task loss" if len(trained) < MANY else curve.branch)
        parts = zip(curve.loss, curve.lambda_, curve.l1_norm, strict=True)
        steps, total = _known(curve.steps, [loss + strength * norm for loss, strength, norm in parts])
        if len(trained) < MANY and len(steps) > 1 and any(strength > 0 for strength in curve.lambda_):
            label = f"{curve.branch}: with λ‖δ‖₁"
            axes.plot(steps, total, color=style.colour, linestyle=":", linewidth=1.1, label=label)
    step_axis(axes)
    axes.set_ylabel("loss (nats)" if len(trained) < MANY else "task loss (nats)")
    if len(trained) < MANY:
        axes.legend(loc="best")
    else:
        figure.legend(loc="outside upper center", ncols=min(len(trained), 4))
    return Drawn(figure, _loss_said(trained), "Line chart of the training loss over the optimizer steps.")


def _loss_said(trained: Sequence[tuple[Curve, Arm]]) -> str:
    """Where the losses end, each penalised branch beside its dense twin."""
    ends = {arm.name: curve.final_loss for curve, arm in trained if curve.final_loss is not None}
    over = "over the last fifth of the logged steps"
    pairs = [(arm.name, arm.twin) for _, arm in trained if arm.twin in ends and arm.name in ends]
    if not pairs:
        has = any(arm.penalised for _, arm in trained)
        said = joined([f"{name} ends at {number(loss)}" for name, loss in ends.items()])
        return (
            f"The task loss of {said} {over}; the run has no losses of an SFT branch {'without' if has else 'with'} the penalty "
            "to compare it with."
        )
    said = joined(
        [f"of {name} ends at {number(ends[name])}, without it at {number(ends[str(twin)])}" for name, twin in pairs]
    )
    return f"With the penalty the task loss {said} ({over}). One batch's loss varies; the arms' scores judge."


def _known(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """The steps at which a value was logged, and the values."""
    pairs = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


@chart("alpha", "From SFT to preferences", "arms")
def alpha_chart(run: RunData) -> Drawn | str:
    """Each goal over alpha, a row each, with 95 % intervals, and the calibration error where there is one; what was taken."""
    if not run.ways:
        return "No arm interpolates between the branches: add alpha to fusion.methods."
    goals = list(dict.fromkeys(name for way in run.ways for name in way.goals)) or [run.ways[0].measures[0].name]
    calibrated = [name for way in run.ways for point in way.points for name in point.calibration]
    rows = len(goals) + bool(calibrated)
    figure = new_figure(height=1.3 + 1.7 * rows)
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    styles = styles_of([run.arm(way.arm) for way in run.ways])
    for way in run.ways:
        style = styles[way.arm]
        for own, name in zip(axes, goals, strict=False):
            _draw_way(own, way, name, style)
        for name in dict.fromkeys(calibrated):
            errors = [(point.alpha, point.calibration[name]) for point in way.points if name in point.calibration]
            axes[-1].plot(
                *zip(*errors, strict=True), color=style.colour, marker=style.marker, label=f"{way.arm}, {name}"
            )
    for own, name in zip(axes, goals, strict=False):
        own.set_ylabel(name)
    if calibrated:
        axes[-1].set_ylabel("ECE")
        axes[-1].legend(loc="best")
    axes[0].legend(loc="best")
    axes[-1].set_xlabel("alpha (0: SFT, 1: preferences)")
    taken = joined([f"{way.arm} takes alpha {way.chosen:g}" for way in run.ways])
    caption = f"Validation items, which judge no arm; bars are 95 % intervals, dotted is the base. {taken}. {RULE}"
    return Drawn(figure, caption, f"Line charts of {joined(goals)} over alpha, one above the other.")


def _draw_way(axes: Axes, way: AlphaCurve, name: str, style: Style) -> None:
    known = [point for point in way.points if name in point.scores]
    at, values = [point.alpha for point in known], [point.scores[name] for point in known]
    ends = [point.intervals.get(name, (value, value)) for point, value in zip(known, values, strict=True)]
    reach = [[max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]]
    reach += [[max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]]
    axes.errorbar(at, values, yerr=reach, color=style.colour, elinewidth=0.8, marker=style.marker, label=way.arm)
    if name in way.base:
        axes.axhline(way.base[name], color=MUTED, linewidth=0.9, linestyle=":", zorder=1)
    if name in way.point.scores:
        at_chosen = way.chosen, way.point.scores[name]
        axes.scatter(*at_chosen, marker="o", s=170, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)


PLOTS: tuple[Chart[RunData], ...] = (tax_chart, alpha_chart, strength_chart, loss_chart)
"""In the order in which they are read."""


def run_plots(run: RunData, section: str) -> list[Plot | Missing]:
    """What is drawn of a run in one section of its page: `arms` or `training`."""
    wanted = [each for each in PLOTS if each is not alpha_chart or run.ways]
    return [each(run) for each in wanted if each.section == section]
