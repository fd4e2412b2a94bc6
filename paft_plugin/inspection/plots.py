"""Plots of an inspection: how sparse each delta is and where, how large its entries are, and where two deltas interfere.

What stands in `PLOTS` is drawn: as a file beside `inspection.json`, on its page, and in a run's report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_plugin import drawing
from paft_plugin.drawing import Chart, Drawn, Missing, Plot, chart, joined, new_figure, whole_numbers
from paft_plugin.evaluation.arms import arm_named
from paft_plugin.files import write_bytes
from paft_plugin.formats import MINUS, plain_number, share, threshold_key
from paft_plugin.inspection.inspected import InspectedDelta, InspectedPair, Inspection
from paft_plugin.inspection.measures import Interference, Vote

if TYPE_CHECKING:
    from matplotlib.axes import Axes

USUAL_THRESHOLD = 1e-5
MOST_PAIRS = 4
ELECTED = (1.0, 0.2)  # densities of which elections are drawn: untrimmed, and what TIES recipes mostly have
OUTCOMES = {
    "won": (drawing.COLOURS[0], ""),
    "lost to one": (drawing.COLOURS[4], "///"),
    "lost to several": (drawing.COLOURS[1], "xxx"),
    "trimmed": (drawing.GRID, ""),
}
"""What becomes of an entry → colour and hatching."""
MOST_NUMBERS = 80  # cells that still have room for their number
TOGETHER = 4  # deltas in one histogram, or small histograms side by side
NARROW_MODEL = 20  # layers; of more, a map takes the whole width
# On the colours of a map, which are the same in a light and a dark page: so neither is a colour that a page replaces.
ON_DARK, ON_LIGHT = "#fffffe", "#000001"
MIDDLE = 0.179  # luminance on which black and white are equally readable, at a contrast of 4.6


def plotted_threshold(inspection: Inspection) -> float | None:
    """The threshold that plots use: 1e-5 if it was measured, otherwise the lowest."""
    if USUAL_THRESHOLD in inspection.thresholds:
        return USUAL_THRESHOLD
    return next(iter(inspection.thresholds), None)


@chart("sparsity", "Sparsity by layer", "deltas")
def sparsity_by_layer(inspection: Inspection) -> Drawn | str:
    """The paper's figure: the sparsity of each layer, a line for each delta."""
    threshold = plotted_threshold(inspection)
    layered = [delta for delta in inspection.deltas if delta.figures.layers]
    if threshold is None:
        return "No sparsity threshold was inspected."
    if not layered:
        return "No delta changes a tensor of a layer."
    figure = new_figure()
    axes = figure.subplots()
    styles = drawing.styles_of([arm_named(delta.name) for delta in layered])
    for delta in layered:
        layers, style = sorted(delta.figures.layers), styles[delta.name]
        shares = [delta.figures.layers[layer].sparsity(threshold) for layer in layers]
        axes.plot(layers, shares, **style.look, label=delta.name)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"share of entries with |δ| ≤ {plain_number(threshold)}")
    whole_numbers(axes.xaxis)
    figure.legend(loc="outside upper center", ncols=min(len(layered), 4))
    if len(layered) > TOGETHER:
        totals = [f"{delta.name} {share(delta.figures.total.sparsity(threshold))}" for delta in layered]
        said = f"In total: {joined(totals)}."
    else:
        said = " ".join(_sparsity_said(delta, threshold) for delta in layered)
    return Drawn(
        figure,
        f"A sparse delta is a line near the top. {said}",
        f"Line chart: sparsity at {plain_number(threshold)} of each layer of {joined([d.name for d in layered])}.",
    )


def _sparsity_said(delta: InspectedDelta, threshold: float) -> str:
    shares = {layer: figures.sparsity(threshold) for layer, figures in delta.figures.layers.items()}
    low = min(shares, key=lambda layer: (shares[layer], layer))
    high = max(shares, key=lambda layer: (shares[layer], -layer))
    said = f"{delta.name}: {share(delta.figures.total.sparsity(threshold))} in total"
    if len(shares) == 1 or shares[high] - shares[low] < 0.01:
        return f"{said}, the same in every layer."
    return f"{said}, from {share(shares[low])} in layer {low} to {share(shares[high])} in layer {high}."


@chart("histogram", "How large the entries are", "deltas")
def histograms(inspection: Inspection) -> Drawn | str:
    """|δ| of every delta on a logarithmic scale, as shares of its entries."""
    drawn = [delta for delta in inspection.deltas if sum(delta.histogram.counts)]
    if not drawn:
        return "Every entry of every delta is exactly zero, or beyond the histogram's ends."
    panels = [[delta] for delta in drawn] if len(drawn) > TOGETHER else [drawn]
    columns = min(len(panels), TOGETHER)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(drawing.WIDE if columns > 1 else drawing.WIDTH, 1 + 1.6 * rows if columns > 1 else 3.2)
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    styles = drawing.styles_of([arm_named(delta.name) for delta in drawn])
    threshold = plotted_threshold(inspection)
    for axes, deltas in zip(grid, panels, strict=False):
        for delta in deltas:
            histogram, style = delta.histogram, styles[delta.name]
            shares = [count / delta.figures.total.entries for count in histogram.counts]
            line = style.line if len(deltas) > 1 else "-"
            axes.stairs(
                shares, histogram.log10_edges, color=style.colour, linestyle=line, linewidth=1.6, label=delta.name
            )
    for axes in grid[: len(panels)]:  # once all is drawn: a limit ends the scaling of what comes later
        _histogram_axes(axes, _filled(drawn), threshold)
    if columns > 1:
        for axes, (delta,) in zip(grid, panels, strict=False):
            axes.set_title(delta.name, loc="left")
        for axes in grid[len(panels) :]:
            axes.remove()
    else:
        figure.legend(loc="outside upper center", ncols=len(drawn))
    figure.supxlabel("|δ|", fontsize=drawing.FONT_SIZE)
    figure.supylabel("share of entries per bin", fontsize=drawing.FONT_SIZE)
    return Drawn(
        figure,
        "Left of the dotted line an entry counts as zero at that threshold. " * (threshold is not None)
        + " ".join(_histogram_said(delta) for delta in drawn),
        f"Histogram of |δ| on a logarithmic scale for {joined([delta.name for delta in drawn])}.",
        wide=columns > 1,
    )


def _histogram_axes(axes: Axes, ends: tuple[float, float], threshold: float | None) -> None:
    """Decades of |δ| across, and where an entry begins to count."""
    axes.set_xlim(*ends)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(
        lambda exponent, _: plain_number(10.0**exponent) if exponent == int(exponent) else ""
    )
    whole_numbers(axes.xaxis)
    if threshold is not None and threshold > 0 and ends[0] < math.log10(threshold) < ends[1]:
        axes.axvline(math.log10(threshold), color=drawing.MUTED, linewidth=0.9, linestyle=":")
        axes.annotate(
            plain_number(threshold), (math.log10(threshold), 1), xycoords=("data", "axes fraction"),
            xytext=(3, -2), textcoords="offset points", va="top", fontsize=8, color=drawing.MUTED,
        )  # fmt: skip


def _filled(deltas: Sequence[InspectedDelta]) -> tuple[float, float]:
    """From the first to the last edge of a bin that holds anything worth seeing, one entry in 10⁴."""
    ends = []
    for edges, counts in ((delta.histogram.log10_edges, delta.histogram.counts) for delta in deltas):
        seen = [place for place, count in enumerate(counts) if count > 1e-4 * sum(counts)]
        ends += [edges[seen[0]], edges[seen[-1] + 1]]
    return min(ends), max(ends)


def _histogram_said(delta: InspectedDelta) -> str:
    total, histogram = delta.figures.total, delta.histogram
    peak = max(range(len(histogram.counts)), key=lambda place: histogram.counts[place])
    middle = 10 ** ((histogram.log10_edges[peak] + histogram.log10_edges[peak + 1]) / 2)
    said = f"{delta.name} has most entries around {plain_number(float(f'{middle:.1g}'))}"
    if total.zeros:
        said += f", besides {share(total.zero_share)} that are exactly 0"
    if total.top_1_percent is not None:
        said += f"; its greatest 1 % of entries hold {share(total.top_1_percent, 0)} of ‖δ‖₁"
    return said + "."


@chart("interference", "Where two branches pull apart", "interference")
def interference_map(inspection: Inspection) -> Drawn | str:
    """Layer × module: the share of entries that both deltas change, in opposite directions."""
    pairs = plotted_pairs(inspection)
    threshold = plotted_threshold(inspection)
    if threshold is None:
        return "No sparsity threshold was inspected."
    if not pairs:
        return "No pair of deltas was inspected." if inspection.deltas else "No delta was inspected."
    layers = sorted({layer for pair in pairs for layer, _ in pair.figures.cells})
    modules = sorted({module for pair in pairs for _, module in pair.figures.cells})
    if not layers:
        return "No two deltas change the same tensor of a layer."
    grids = [_grid(pair, layers, modules, threshold) for pair in pairs]
    greatest = max((cell for grid in grids for row in grid for cell in row if math.isfinite(cell)), default=0.0)
    columns = 2 if len(layers) <= NARROW_MODEL and len(pairs) > 1 else 1
    rows = math.ceil(len(pairs) / columns)
    wide = columns == 2 or len(layers) > NARROW_MODEL
    figure = new_figure(drawing.WIDE if wide else drawing.WIDE / 2, rows * (0.27 * len(modules) + 0.75) + 0.35)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    with_numbers = len(layers) * len(modules) <= MOST_NUMBERS
    image: Any = None
    for panel, pair, grid in zip(axes, pairs, grids, strict=False):
        image = panel.imshow(
            grid, cmap="cividis", vmin=0, vmax=greatest or 1.0, aspect="auto", interpolation="none",
            extent=(layers[0] - 0.5, layers[-1] + 0.5, len(modules) - 0.5, -0.5),
        )  # fmt: skip
        _frame(panel, f"{pair.first} and {pair.second}", modules)
        if with_numbers:
            _numbers(panel, grid, layers, image)
    for unused in axes[len(pairs) :]:
        unused.set_visible(False)
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.9, pad=0.015, aspect=18)
    bar.ax.yaxis.set_major_formatter(lambda part, _: f"{100 * part:.3g} %")
    bar.outline.set_visible(False)
    left_out = len(_candidates(inspection)) - len(pairs)
    return Drawn(
        figure,
        f"Share of entries where both |δ| are above {plain_number(threshold)} and their signs are opposite; a merge must "
        f"overrule one branch there. {' '.join(_interference_said(pair, threshold) for pair in pairs)}"
        + (f" Only in the table: {left_out} more." if left_out > 0 else ""),
        f"Heat map, layers across and kinds of modules downwards, for {joined([f'{p.first} with {p.second}' for p in pairs])}.",
        wide,
    )


def plotted_pairs(inspection: Inspection) -> list[InspectedPair]:
    """A few of those pairs that a fusion could combine, of many the ones that pull apart most: no branch with its own twin."""
    pairs, threshold = _candidates(inspection), plotted_threshold(inspection)
    if len(pairs) <= MOST_PAIRS or threshold is None:
        return pairs[:MOST_PAIRS]
    return sorted(pairs, key=lambda pair: -conflict_share(pair.figures.total, threshold))[:MOST_PAIRS]


def _candidates(inspection: Inspection) -> list[InspectedPair]:
    def are_twins(pair: InspectedPair) -> bool:
        return arm_named(pair.first).twin == pair.second or arm_named(pair.second).twin == pair.first

    return [pair for pair in inspection.pairs if not are_twins(pair)] or list(inspection.pairs)


def conflict_share(figures: Interference, threshold: float) -> float:
    """Entries where both deltas are above the threshold and their signs are opposite, as a share of all entries."""
    return figures.overlap[threshold_key(threshold)].conflicts / figures.entries


def _grid(pair: InspectedPair, layers: list[int], modules: list[str], threshold: float) -> list[list[float]]:
    """A row for each module, a column for each layer number from the first to the last; NaN where there is no cell."""

    def conflicts(layer: int, module: str) -> float:
        cell = pair.figures.cell(layer, module)
        return math.nan if cell is None else conflict_share(cell, threshold)

    return [[conflicts(layer, module) for layer in range(layers[0], layers[-1] + 1)] for module in modules]


def _frame(axes: Axes, title: str, modules: list[str]) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("layer")
    axes.set_yticks(range(len(modules)), modules)
    whole_numbers(axes.xaxis)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _numbers(axes: Axes, grid: list[list[float]], layers: list[int], image: Any) -> None:
    """Write each cell's share, in percent, in what is readable on its colour."""
    for row, shares in enumerate(grid):
        for column, part in enumerate(shares):
            if math.isfinite(part):
                colour = ON_LIGHT if luminance(image.cmap(image.norm(part))[:3]) > MIDDLE else ON_DARK
                text = f"{100 * part:.1f}" if part < 0.1 else f"{100 * part:.0f}"
                axes.text(layers[0] + column, row, text, ha="center", va="center", fontsize=7, color=colour)


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance (WCAG 2) of red, green and blue in [0, 1]."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _interference_said(pair: InspectedPair, threshold: float) -> str:
    total = pair.figures.total
    said = f"{pair.first} and {pair.second}: {share(conflict_share(total, threshold))} in total"
    if pair.figures.cells:
        worst = max(pair.figures.cells, key=lambda cell: (conflict_share(pair.figures.cells[cell], threshold), cell))
        most = conflict_share(pair.figures.cells[worst], threshold)
        said += f", at most {share(most)} in {worst[1]} of layer {worst[0]}"
    return f"{said}."


@chart("winners", "Who wins the election of signs", "interference")
def elections_chart(inspection: Inspection) -> Drawn | str:
    """A bar for each branch: what TIES makes of its entries when all of them are fused at once."""
    if inspection.elections is None:
        return "Fewer than three branches were inspected together."
    ties = inspection.elections.total.ties
    shown = [key for density in ELECTED if (key := threshold_key(density)) in ties] or list(ties)[-1:]
    names = list(ties[shown[0]])
    figure = new_figure(drawing.WIDE if len(shown) > 1 else drawing.WIDTH, 0.3 * len(names) + 1.25)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for panel, key in zip(panels, shown, strict=True):
        left = [0.0] * len(names)
        for what, (colour, hatch) in OUTCOMES.items():
            shares = [outcome_share(vote, what) for vote in ties[key].values()]
            panel.barh(
                names, shares, 0.72, left, color=colour, hatch=hatch, edgecolor=drawing.PAPER, linewidth=0.6, label=what
            )
            left = [start + share for start, share in zip(left, shares, strict=True)]
        panel.set_title("nothing trimmed" if float(key) == 1 else f"TIES, density {float(key):g}", loc="left")
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(lambda part, _: f"{100 * part:.0f} %")
        panel.set_xlabel("of the branch's entries ≠ 0")
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(OUTCOMES))
    return Drawn(
        figure,
        "All branches at once, with equal weights. Lost to one: a single entry of another branch outweighs all that pull this "
        f"way; lost to several: only a coalition does. {' '.join(_elections_said(name, ties[shown[0]][name]) for name in names)}",
        f"Stacked bars, one for each of {joined(names)}: shares of entries that win, lose to one, lose to several, are trimmed.",
        len(shown) > 1,
    )


def outcome_share(vote: Vote, what: str) -> float:
    """Of a branch's entries ≠ 0 those of one of `OUTCOMES`."""
    counts = dict(zip(OUTCOMES, (vote.won, vote.lost_to_one, vote.lost_to_several, vote.trimmed), strict=True))
    return counts[what] / vote.nonzero if vote.nonzero else 0.0


def _elections_said(name: str, vote: Vote) -> str:
    won, lost = outcome_share(vote, "won"), outcome_share(vote, "lost to several")
    return f"{name} wins {share(won, 0)} and loses {share(lost, 0)} to coalitions."


@chart("matrix", "Every two branches", "interference")
def pair_matrix(inspection: Inspection) -> Drawn | str:
    """Branch × branch: the cosine of their deltas, and how far their signs oppose."""
    if inspection.elections is None:
        return "Fewer than three branches were inspected together."
    names = list(next(iter(inspection.elections.total.ties.values())))
    found = {(pair.first, pair.second): pair.figures.total for pair in inspection.pairs}
    figure = new_figure(drawing.WIDE, 0.36 * len(names) + 1.3)
    for panel, (title, measure, colours, low, form) in zip(figure.subplots(1, 2, sharey=True), MATRICES, strict=True):
        grid = [[math.nan] * (len(names) - 1) for _ in names[1:]]
        for (one, other), total in found.items():
            value = getattr(total, measure)
            if one in names and other in names and value is not None:
                column, row = sorted((names.index(one), names.index(other)))
                grid[row - 1][column] = value
        image = panel.imshow(grid, cmap=colours, vmin=low, vmax=1, aspect="auto", interpolation="none")
        _frame(panel, title, names[1:])
        panel.set_xlabel("")
        panel.set_xticks(range(len(names) - 1), names[:-1], rotation=30, ha="right", rotation_mode="anchor")
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                if math.isfinite(value):
                    colour = ON_LIGHT if luminance(image.cmap(image.norm(value))[:3]) > MIDDLE else ON_DARK
                    panel.text(column, row, form(value), ha="center", va="center", fontsize=7, color=colour)
    return Drawn(
        figure,
        "Left: 1 is the same direction, 0 unrelated, −1 the opposite. Right: of what both change, the part by magnitude where "
        f"their signs oppose; half is what unrelated deltas have. {_pairs_said(found, names)}",
        f"Two heat maps of {joined(names)} by each other.",
        wide=True,
    )


def _pairs_said(found: Mapping[tuple[str, str], Interference], names: Sequence[str]) -> str:
    known = {
        pair: total.cosine for pair, total in found.items() if total.cosine is not None and set(pair) <= set(names)
    }
    if not known:
        return "No two have a tensor in common."
    nearest = max(known, key=lambda pair: abs(known[pair]))
    return f"The nearest are {joined(nearest)}, with a cosine of {known[nearest]:.2f}."


MATRICES: tuple[tuple[str, str, str, float, Callable[[float], str]], ...] = (
    ("cosine", "cosine", "PuOr_r", -1, lambda value: f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)),
    ("signs that oppose, by magnitude", "conflict_weight", "cividis", 0, lambda part: f"{100 * part:.0f} %"),
)
"""Title, figure, colours that colour-blind people can tell apart, their lower end, and how a number is written."""
PLOTS: tuple[Chart[Inspection], ...] = (sparsity_by_layer, histograms, elections_chart, pair_matrix, interference_map)
"""In the order in which they are read."""


def charts_of(inspection: Inspection) -> list[Chart[Inspection]]:
    """Those that are about as many branches as there are."""
    return [each for each in PLOTS if inspection.elections is not None or each not in (elections_chart, pair_matrix)]


def inspection_plots(inspection: Inspection, section: str) -> list[Plot | Missing]:
    """What is drawn of an inspection in one section of a page: `deltas` or `interference`."""
    return [each(inspection) for each in charts_of(inspection) if each.section == section]


def write_plots(inspection: Inspection, folder: Path) -> list[Path]:
    """Write each plot that there is something to draw for as a PNG; returns the files."""
    written = []
    for each in charts_of(inspection):
        plot = each(inspection)
        if isinstance(plot, Plot):
            written.append(folder / f"{plot.name}.png")
            write_bytes(written[-1], drawing.as_png(plot))
    return written
