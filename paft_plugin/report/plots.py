"""Plots of a run: what its arms trade, and how its branches trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paft_plugin.drawing import (
    INK,
    MUTED,
    PAPER,
    Missing,
    Plot,
    common_style,
    joined,
    log_axis,
    new_figure,
    plain_number,
    style_of,
)  # fmt: skip
from paft_plugin.inspection.curves import Curve
from paft_plugin.report.choice import Choice
from paft_plugin.report.differences import BAR, number, signed, standard_error
from paft_plugin.report.results import Arm, Measure, Results
from paft_plugin.thresholds import threshold_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]


@common_style()
def tax_chart(results: Results, choice: Choice) -> Plot | Missing:
    """Skill against preference, one point an arm, with bars of two standard errors."""
    name, title = "tax", "What alignment costs"
    if results.skill is None or results.preference is None:
        return Missing(name, title, "The run names no measure of the skill, or none of the preference.")
    skill, preference = results.measure(results.skill), results.measure(results.preference)
    arms = [arm for arm in results.arms if {skill.name, preference.name} <= arm.scores.keys()]
    if len(arms) < 2:
        return Missing(name, title, "Fewer than two arms have been scored on both the skill and the preference.")
    figure = new_figure(height=3.8)
    axes = figure.subplots()
    for arm in arms:
        _arm_point(axes, arm, skill, preference, is_chosen=choice.arm is not None and arm.name == choice.arm.name)
    axes.set_xlabel(_axis_label(skill))
    axes.set_ylabel(_axis_label(preference))
    axes.margins(0.12)
    _label_groups(figure, axes, arms, skill.name, preference.name)
    return Plot(
        name,
        title,
        _tax_caption(results, choice, skill, preference),
        f"Scatter chart of {len(arms)} arms: {skill.name} across, {preference.name} upwards.",
        figure,
    )


def _axis_label(measure: Measure) -> str:
    return f"{measure.name} ({'more' if measure.higher_is_better else 'less'} is better)"


def _arm_point(axes: Axes, arm: Arm, skill: Measure, preference: Measure, is_chosen: bool) -> None:
    style = style_of(arm.name)
    x, y = arm.scores[skill.name], arm.scores[preference.name]
    errors = [BAR * (standard_error(arm, measure.name) or 0.0) for measure in (skill, preference)]
    axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], color=style.colour, linewidth=0.8, alpha=0.6, zorder=2)
    axes.scatter(x, y, marker=style.marker, s=42, color=style.colour, edgecolors=PAPER, linewidths=0.6, zorder=3)
    if is_chosen:
        axes.scatter(x, y, marker="o", s=170, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)


def _label_groups(figure: Figure, axes: Axes, arms: Sequence[Arm], skill: str, preference: str) -> None:
    """Name each point; points that lie on each other share one list of names, so that no name covers another."""
    figure.draw_without_rendering()  # only then is it known where a point lies
    scale = 72 / figure.dpi
    groups: list[list[Arm]] = []
    places = {arm.name: axes.transData.transform((arm.scores[skill], arm.scores[preference])) * scale for arm in arms}
    for arm in arms:
        near = next((group for group in groups if math.dist(places[group[0].name], places[arm.name]) < 14), None)
        groups.append([arm]) if near is None else near.append(arm)
    left, bottom, right, top = (float(edge) * scale for edge in axes.bbox.extents)
    taken = [box for arm in arms for box in _mark_boxes(axes, arm, skill, preference, scale)]
    for group in sorted(groups, key=len, reverse=True):
        text = "\n".join(arm.name for arm in group)
        width = max(len(arm.name) for arm in group) * 4.6 + 4
        height = 9.6 * len(group) + 2
        x, y = places[group[0].name]
        candidates = [
            (dx * (width / 2 + reach), dy * (height / 2 + reach))
            for reach in (9, 16, 26, 40, 60)
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
        ]
        boxes = [_box(x + dx, y + dy, width, height) for dx, dy in candidates]
        fits = [
            place
            for place, box in enumerate(boxes)
            if left <= box[0] and box[2] <= right and bottom <= box[1] and box[3] <= top
            and not any(_overlap(box, other) for other in taken)
        ]  # fmt: skip
        place = fits[0] if fits else 0
        taken.append(boxes[place])
        far = place >= 8
        axes.annotate(
            text, (group[0].scores[skill], group[0].scores[preference]), xytext=candidates[place],
            textcoords="offset points", ha="center", va="center", fontsize=8, linespacing=1.15, color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if far else None,
        )  # fmt: skip


def _mark_boxes(axes: Axes, arm: Arm, skill: str, preference: str, scale: float) -> list[Box]:
    """What a point and its error bars cover, in typographic points."""
    x, y = arm.scores[skill], arm.scores[preference]
    dx, dy = (BAR * (standard_error(arm, name) or 0.0) for name in (skill, preference))
    corners = axes.transData.transform([(x - dx, y), (x + dx, y), (x, y - dy), (x, y + dy), (x, y)]) * scale
    (x0, y1), (x1, _), (x2, y0), (_, y2), (x, y) = ((float(a), float(b)) for a, b in corners)
    return [(x0, y1 - 2, x1, y1 + 2), (x2 - 2, y0, x2 + 2, y2), _box(x, y, 12, 12)]


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _tax_caption(results: Results, choice: Choice, skill: Measure, preference: Measure) -> str:
    corner = f"{'right' if skill.higher_is_better else 'left'} and {'up' if preference.higher_is_better else 'down'}"
    said = [f"Best is {corner}; bars are {BAR:g} standard errors each way."]
    sft, sequential = results.arm("sft"), results.arm("sequential")
    if sequential is not None and sequential.alignment_tax is not None and sft is not None:
        said.append(
            f"Sequential training ends at {_point(sequential, skill, preference)}, an alignment tax of "
            f"{signed(sequential.alignment_tax)} against sft."
        )
    if choice.arm is not None and choice.arm is not sequential:
        said.append(f"Ringed: {choice.arm.name}, {_point(choice.arm, skill, preference)}.")
    return " ".join(said)


def _point(arm: Arm, skill: Measure, preference: Measure) -> str:
    known = [(m.name, arm.scores[m.name]) for m in (skill, preference) if m.name in arm.scores]
    return joined([f"{name} {number(score)}" for name, score in known]) if known else "no score"


@common_style()
def strength_chart(curves: Sequence[Curve], targets: Mapping[str, tuple[str, float]]) -> Plot | Missing:
    """λ above, sparsity below, over the steps of every branch with a penalty.

    Args:
        curves: Of any branches.
        targets: Branch → (threshold, sparsity that it was to end at), where it had a target.
    """
    name, title = "strength", "Strength and sparsity over training"
    penalised = [curve for curve in curves if any(map(math.isfinite, curve.lambda_)) and curve.sparsity]
    if not penalised:
        return Missing(name, title, "No branch has a record of λ: none was trained with the penalty.")
    figure = new_figure(height=3.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    said = []
    for curve in penalised:
        style = style_of(curve.branch)
        drawn: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": style.line}
        above.plot(*_known(curve.steps, curve.lambda_), label=curve.branch, **drawn)
        for place, (threshold, shares) in enumerate(sorted(curve.sparsity.items(), key=lambda item: float(item[0]))):
            label = f"{curve.branch}, |δ| ≤ {threshold_label(float(threshold))}"
            below.plot(*_known(curve.steps, shares), label=label, **{**drawn, "alpha": 1.0 if not place else 0.55})
        if curve.branch in targets:
            below.axhline(targets[curve.branch][1], color=MUTED, linewidth=0.9, linestyle=":", zorder=1)
        said.append(_strength_said(curve, targets.get(curve.branch)))
    _strength_axis(above, [strength for curve in penalised for strength in curve.lambda_])
    above.set_ylabel("λ")
    below.set_ylabel("sparsity")
    below.set_ylim(-0.02, 1.02)
    below.set_xlabel("optimizer step")
    below.legend(loc="best")
    return Plot(
        name, title, " ".join(said), "Two line charts over the optimizer steps: λ above, sparsity below.", figure
    )


def _strength_axis(axes: Axes, strengths: Sequence[float]) -> None:
    """Logarithmic where λ moved over more than a decade and never was 0."""
    known = [strength for strength in strengths if math.isfinite(strength)]
    if min(known) > 0 and max(known) > 10 * min(known):
        log_axis(axes, "y")
    else:
        axes.set_ylim(0, 1.5 * max(known) or 1.0)
        axes.locator_params(axis="y", nbins=4)
        axes.yaxis.set_major_formatter(plain_number)


def _strength_said(curve: Curve, target: tuple[str, float] | None) -> str:
    steps, strengths = _known(curve.steps, curve.lambda_)
    threshold = target[0] if target and target[0] in curve.sparsity else min(curve.sparsity, key=float)
    _, shares = _known(curve.steps, curve.sparsity[threshold])
    low, high = min(strengths), max(strengths)
    moved = f"λ stays at {low:.3g}" if low == high else f"λ goes from {strengths[0]:.3g} to {strengths[-1]:.3g}"
    said = f"{curve.branch}: {moved}"
    if shares:
        said += (
            f" while the sparsity at |δ| ≤ {threshold_label(float(threshold))} goes from {shares[0]:.1%} "
            f"(step {steps[0]}) to {shares[-1]:.1%} (step {steps[-1]})"
        )
    return said + (f"; dotted: its target, {target[1]:.0%}." if target else ".")


@common_style()
def loss_chart(curves: Sequence[Curve]) -> Plot | Missing:
    """The task loss of SFT with and without the penalty, and what the penalised branch minimises in sum."""
    name, title = "loss", "Loss with and without the penalty"
    trained = [
        curve for curve in curves if curve.branch in ("sft", "sft-l1") and len(_known(curve.steps, curve.loss)[0]) > 1
    ]
    if not trained:
        return Missing(name, title, "Neither a checkpoint nor a log of an SFT branch holds losses.")
    figure = new_figure()
    axes = figure.subplots()
    for curve in trained:
        style = style_of(curve.branch)
        label = f"{curve.branch}: task loss"
        axes.plot(
            *_known(curve.steps, curve.loss), color=style.colour, marker=style.marker, linestyle=style.line, label=label
        )
        total = [
            loss + strength * norm
            for loss, strength, norm in zip(curve.loss, curve.lambda_, curve.l1_norm, strict=True)
        ]
        if len(_known(curve.steps, total)[0]) > 1 and any(strength > 0 for strength in curve.lambda_):
            axes.plot(
                *_known(curve.steps, total),
                color=style.colour,
                linestyle=":",
                linewidth=1.1,
                label=f"{curve.branch}: with λ‖δ‖₁",
            )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats)")
    axes.legend(loc="best")
    return Plot(name, title, _loss_said(trained), "Line chart of the training loss over the optimizer steps.", figure)


def _loss_said(trained: Sequence[Curve]) -> str:
    ends = {curve.branch: curve.final_loss for curve in trained if curve.final_loss is not None}
    over = "over the last fifth of the logged steps"
    if len(ends) < 2:
        ((branch, end),) = ends.items()
        missing = "sft" if branch == "sft-l1" else "sft-l1"
        return f"The task loss of {branch} ends at {number(end)} {over}; the run has no losses of {missing} to compare it with."
    change = ends["sft-l1"] - ends["sft"]
    return (
        f"With the penalty the task loss ends at {number(ends['sft-l1'])}, without it at {number(ends['sft'])} ({over}): "
        f"a difference of {signed(change)} nats. One batch's loss varies; the arms' scores judge."
    )


def _known(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """The steps at which a value was logged, and the values."""
    pairs = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]
