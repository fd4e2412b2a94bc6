"""`inspection.html`: what an inspection measured, as a page; and the same as parts of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft_plugin.drawing import Missing, joined
from paft_plugin.files import write_text
from paft_plugin.formats import plain_number, share
from paft_plugin.inspection.inspected import Inspection, read_inspection
from paft_plugin.inspection.plots import inspection_plots, plotted_threshold
from paft_plugin.inspection.tables import (
    election_table,
    layer_table,
    module_table,
    pair_table,
    size_table,
    sparsity_table,
    votes_table,
)
from paft_plugin.report.page import Shown, shown
from paft_plugin.tables import Table
from paft_plugin.templates import render

PAGE = "inspection.html"


@dataclass(frozen=True)
class Part:
    """Tables and plots of one section: `tables` are always open, `details` fold away."""

    tables: Sequence[Table]
    details: Sequence[Table]
    drawn: Sequence[Shown]
    missing: Sequence[Missing]


def deltas_part(inspection: Inspection) -> Part:
    """Sparsity and sizes."""
    drawn, missing = shown(inspection_plots(inspection, "deltas"))
    details = filter(None, [layer_table(inspection), module_table(inspection)])
    return Part([sparsity_table(inspection), size_table(inspection)], list(details), drawn, missing)


def pairs_part(inspection: Inspection) -> Part:
    """Interference."""
    drawn, missing = shown(inspection_plots(inspection, "interference"))
    tables, details = [pair_table(inspection), votes_table(inspection)], election_table(inspection)
    return Part(list(filter(None, tables)), list(filter(None, [details])), drawn, missing)


def write_inspection_page(folder: Path) -> Path:
    """Write `inspection.html` beside the `inspection.json` in `folder`; returns the page.

    Raises:
        PaftError: the inspection is missing or damaged.
    """
    page = folder / PAGE
    write_text(page, inspection_html(read_inspection(folder), folder.absolute().name))
    return page


def inspection_html(inspection: Inspection, name: str) -> str:
    """The page of an inspection called `name`."""
    headline, lead = inspection_said(inspection)
    return render(
        "paft_plugin.report",
        "inspection.html",
        title=f"Inspection: {name}",
        brand=f"PAFT inspection · {name}",
        made_by="axolotl paft inspect",
        sections=[("deltas-section", "Deltas"), ("interference-section", "Interference"), ("about", "About")],
        headline=headline,
        lead=lead,
        inspection=inspection,
        deltas=deltas_part(inspection),
        pairs=pairs_part(inspection),
    )


def inspection_said(inspection: Inspection) -> tuple[str, str]:
    """The result in one line, and in a sentence more."""
    threshold = plotted_threshold(inspection)
    if threshold is None or not inspection.deltas:
        return "Nothing measured", "The inspection holds no delta or no sparsity threshold."
    shares = {delta.name: delta.figures.total.sparsity(threshold) for delta in inspection.deltas}
    sparsest = max(shares, key=lambda name: shares[name])
    headline = f"{sparsest} is {share(shares[sparsest])} sparse at {plain_number(threshold)}"
    others = [f"{name} {share(sparsity)}" for name, sparsity in shares.items() if name != sparsest]
    lead = f"That share of its entries has |δ| ≤ {plain_number(threshold)}"
    lead += f"; {joined(others)}." if others else "."
    pairs = [pair for pair in inspection.pairs if pair.figures.total.conflict_weight is not None]
    if pairs:
        worst = max(pairs, key=lambda pair: (pair.figures.total.opposing, pair.first))
        weight = worst.figures.total.conflict_weight or 0.0
        lead += f" The strongest interference is between {worst.first} and {worst.second}: of what both change, signs oppose in "
        lead += f"{share(weight, 0)} by magnitude."
    return headline, lead
