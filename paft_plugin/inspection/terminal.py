"""An inspection in the terminal: a bar while it runs, then tables of each delta and each pair that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from paft_plugin.formats import threshold_key, threshold_label
from paft_plugin.inspection.inspected import InspectedDelta, InspectedPair, Inspection
from paft_plugin.inspection.measures import Measures

if TYPE_CHECKING:
    from paft_plugin.inspection.inspect import OnEntries

BLANK = "–"
SIDE_BY_SIDE = 4
"""Deltas that fit beside one another."""
USUAL_THRESHOLD = 1e-5


@contextmanager
def entries_done(console: Console) -> Iterator[OnEntries]:
    """While the context lasts, a bar on the console (if that is a terminal) that moves with each call of what it yields."""
    columns = (TextColumn("Inspecting"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("inspect", total=None)

        def move(done: int, of: int) -> None:
            bar.update(task, advance=done, total=of)

        yield move


def tables(inspection: Inspection) -> Iterator[Table]:
    """The deltas, a few at a time, then the pairs, then what TIES makes of each."""
    for start in range(0, len(inspection.deltas), SIDE_BY_SIDE):
        yield _deltas(inspection, inspection.deltas[start : start + SIDE_BY_SIDE])
    if inspection.pairs:
        yield _pairs(inspection)
        yield _elections(inspection)


def _deltas(inspection: Inspection, deltas: Sequence[InspectedDelta]) -> Table:
    totals = [delta.figures.total for delta in deltas]
    table = _table("Delta", *(delta.name for delta in deltas))
    table.add_row("kind", *(delta.kind for delta in deltas))
    table.add_row("entries", *(_count(total.entries) for total in totals))
    table.add_row("δ = 0", *(_share(total.zero_share) for total in totals))
    for threshold in inspection.thresholds:
        table.add_row(f"|δ| ≤ {threshold_label(threshold)}", *(_share(total.sparsity(threshold)) for total in totals))
    for dtype in dict.fromkeys(dtype for total in totals for dtype in total.unseen):
        table.add_row(f"hidden by {dtype}", *(_hidden(total, dtype) for total in totals))
    table.add_row("mass in the top 1 %", *(_share(total.top_1_percent) for total in totals))
    table.add_row("mass in the top 10 %", *(_share(total.top_10_percent) for total in totals))
    table.add_row("Hoyer", *(_number(total.hoyer) for total in totals))
    table.add_row("Gini", *(_number(total.gini) for total in totals))
    table.add_row("‖δ‖₂", *(_number(total.l2) for total in totals))
    table.add_row("‖δ‖₂ / ‖θ_pre‖₂", *(_number(total.relative) for total in totals))
    table.add_row("max |δ|", *(_number(total.largest) for total in totals))
    return table


def _pairs(inspection: Inspection) -> Table:
    threshold = threshold_key(USUAL_THRESHOLD if USUAL_THRESHOLD in inspection.thresholds else 0.0)
    table = _table(f"Pair (|δ| > {threshold_label(float(threshold))})", "cosine", "Jaccard", "conflicts", "by weight")
    for pair in inspection.pairs:
        figures = pair.figures.total
        overlap = figures.overlap[threshold]
        table.add_row(
            _name(pair),
            _number(figures.cosine),
            _number(overlap.jaccard),
            _share(overlap.conflict_share),
            _share(figures.conflict_weight),
        )
    return table


def _elections(inspection: Inspection) -> Table:
    """Shares of each branch's entries ≠ 0, the first's and the second's."""
    table = _table("TIES, of δ ≠ 0", "density", "trimmed", "lost", "elected")
    for pair in inspection.pairs:
        for density in inspection.densities:
            election = pair.figures.total.ties[threshold_key(density)]
            parts = (election.trimmed, election.lost, election.elected)
            cells = (
                " / ".join(
                    _share(part / whole if whole else None) for part, whole in zip(each, election.nonzero, strict=True)
                )
                for each in parts
            )
            table.add_row(_name(pair) if density == inspection.densities[0] else "", f"{density:g}", *cells)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for other in others:
        table.add_column(other, justify="right", overflow="fold")
    return table


def _name(pair: InspectedPair) -> str:
    return f"{pair.first} / {pair.second}"


def _hidden(figures: Measures, dtype: str) -> str:
    return _share(figures.unseen[dtype] / figures.entries if dtype in figures.unseen else None)


def _share(value: float | None) -> str:
    """As per cent. Only none at all is 0, and only all of them 100."""
    if value is None:
        return BLANK
    text = f"{100 * value:.1f}"
    if value and text == "0.0":
        return "<0.1 %"
    if value < 1 and text == "100.0":
        return ">99.9 %"
    return f"{text} %"


def _number(value: float | None) -> str:
    return BLANK if value is None else f"{value:.3g}"


def _count(entries: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if entries >= size:
            return f"{entries / size:.3g} {unit}"
    return str(entries)
