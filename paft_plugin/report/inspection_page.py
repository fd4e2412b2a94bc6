"""`inspection.html`: what an inspection measured, as a page; and the same as parts of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft_plugin.drawing import Missing, joined
from paft_plugin.files import write_text
from paft_plugin.formats import threshold_key, threshold_label
from paft_plugin.inspection.inspected import InspectedPair, Inspection, read_inspection
from paft_plugin.inspection.plots import (
    conflict_share,
    inspection_plots,
    plotted_threshold,
)
from paft_plugin.report.differences import signed
from paft_plugin.report.page import BLANK, Cell, Column, Row, Shown, Table, number_cell, render, shown, unbroken

PERCENT = "{:.1%}"


def sparsity_table(inspection: Inspection) -> Table:
    """A row for each delta: sparsity in all its senses."""
    hidden = sorted({dtype for delta in inspection.deltas for dtype in delta.figures.total.unseen})
    rows = []
    for delta in inspection.deltas:
        total = delta.figures.total
        shares = {dtype: count / total.entries for dtype, count in total.unseen.items()}
        rows.append(
            Row(
                [
                    Cell(delta.name),
                    number_cell(total.entries, "{:,}"),
                    number_cell(total.zero_share, PERCENT),
                    *(number_cell(total.sparsity(threshold), PERCENT) for threshold in inspection.thresholds),
                    *(number_cell(shares.get(dtype), PERCENT) for dtype in hidden),
                ]
            )
        )
    return Table(
        "deltas",
        "How sparse every delta is",
        [
            Column("Delta", is_number=False),
            Column("Entries"),
            Column("Exactly 0"),
            *(Column(f"|δ| ≤ {unbroken(threshold_label(threshold))}") for threshold in inspection.thresholds),
            *(Column(f"Hidden in {dtype}") for dtype in hidden),
        ],
        rows,
        "Shares of its entries. Hidden: those that vanish when θ_pre + δ is rounded to that dtype (arXiv 2505.11711).",
    )


def size_table(inspection: Inspection) -> Table:
    """A row for each delta: how much of it few entries hold, and its norms."""
    rows = []
    for delta in inspection.deltas:
        total = delta.figures.total
        rows.append(
            Row(
                [
                    Cell(delta.name),
                    number_cell(total.hoyer, "{:.2f}"),
                    number_cell(total.gini, "{:.2f}"),
                    number_cell(total.top_1_percent, PERCENT),
                    number_cell(total.top_10_percent, PERCENT),
                    number_cell(total.l1, "{:.4g}"),
                    number_cell(total.l2, "{:.4g}"),
                    number_cell(total.largest, "{:.2g}"),
                    number_cell(total.relative, "{:.2g}"),
                ]
            )
        )
    return Table(
        "sizes",
        "How concentrated and how large every delta is",
        [
            Column("Delta", is_number=False),
            Column("Hoyer"),
            Column("Gini"),
            Column("‖δ‖₁ in the top 1 %"),
            Column("In the top 10 %"),
            Column("‖δ‖₁"),
            Column("‖δ‖₂"),
            Column("max |δ|"),
            Column("‖δ‖₂ / ‖θ_pre‖₂"),
        ],
        rows,
        "Hoyer, Gini and the shares of the top entries do not depend on scale, so that a merely small delta isn't called sparse: "
        "Hoyer and Gini are 0 if all entries are equal, near 1 if few hold everything.",
    )


def module_table(inspection: Inspection) -> Table | None:
    """Sparsity of each kind of module, a column for each delta; None without a threshold."""
    names = {module: None for delta in inspection.deltas for module in delta.figures.modules}
    return _sparsity_table(inspection, "modules", "kind of module", list(names))


def layer_table(inspection: Inspection) -> Table | None:
    """Sparsity of each layer, a column for each delta; None without a threshold or layers."""
    layers = sorted({layer for delta in inspection.deltas for layer in delta.figures.layers})
    return _sparsity_table(inspection, "layers", "layer", layers)


def _sparsity_table(inspection: Inspection, name: str, what: str, groups: Sequence[int | str]) -> Table | None:
    threshold = plotted_threshold(inspection)
    if threshold is None or not groups:
        return None
    rows = []
    for group in groups:
        cells = []
        for delta in inspection.deltas:
            figures = delta.figures.layers.get(group) if isinstance(group, int) else delta.figures.modules.get(group)
            cells.append(number_cell(None if figures is None else figures.sparsity(threshold), PERCENT))
        rows.append(Row([Cell(str(group), group if isinstance(group, int) else None), *cells]))
    return Table(
        name,
        f"Sparsity at {threshold_label(threshold)} by {what}",
        [Column(what.capitalize(), is_number=False), *(Column(delta.name) for delta in inspection.deltas)],
        rows,
    )


def pair_table(inspection: Inspection) -> Table | None:
    """A row for each pair of deltas: how they overlap and where they disagree; None without pairs."""
    threshold = plotted_threshold(inspection)
    if not inspection.pairs or threshold is None:
        return None
    rows = []
    for pair in inspection.pairs:
        total = pair.figures.total
        overlap = total.overlap[threshold_key(threshold)]
        rows.append(
            Row(
                [
                    Cell(_name(pair)),
                    number_cell(overlap.jaccard, PERCENT),
                    number_cell(conflict_share(total, threshold), PERCENT),
                    number_cell(overlap.conflict_share, PERCENT),
                    number_cell(total.conflict_weight, PERCENT),
                    Cell(BLANK, "") if total.cosine is None else Cell(signed(total.cosine), total.cosine),
                ]
            )
        )
    at = threshold_label(threshold)
    return Table(
        "pairs",
        "Interference of each pair of deltas",
        [
            Column("Pair", is_number=False),
            Column(f"Supports' overlap at {unbroken(at)}"),
            Column("Sign conflicts, of all entries"),
            Column("Sign conflicts, of shared entries"),
            Column("Sign conflicts, by magnitude"),
            Column("Cosine"),
        ],
        rows,
        f"A support is where |δ| is above {at}; overlap is intersection over union. Two unrelated dense deltas have conflicts in "
        "half of all entries and a cosine near 0.",
    )


def election_table(inspection: Inspection) -> Table | None:
    """What TIES and DARE-TIES would keep and overrule of each pair, at each density; None without pairs."""
    rows = []
    for pair in inspection.pairs:
        total = pair.figures.total
        for method, elections in (("ties", total.ties), ("dare_ties", total.dare)):
            for density in sorted(elections, key=float, reverse=True):
                election = elections[density]
                cells: list[Cell] = []
                for place in (0, 1):
                    kept, lost = election.kept[place], election.lost[place]
                    trimmed = election.trimmed[place] / election.nonzero[place] if election.nonzero[place] else None
                    cells += [number_cell(trimmed, PERCENT), number_cell(lost / kept if kept else None, PERCENT)]
                rows.append(Row([Cell(_name(pair)), Cell(method), Cell(f"{float(density):g}", float(density)), *cells]))
    if not rows:
        return None
    return Table(
        "elections",
        "What a merge with equal weights would do",
        [
            Column("Pair", is_number=False),
            Column("Method", is_number=False),
            Column("Density"),
            Column("First: trimmed"),
            Column("First: overruled"),
            Column("Second: trimmed"),
            Column("Second: overruled"),
        ],
        rows,
        "First and second are the deltas as the pair names them. Trimmed: entries not 0 that the density removes. Overruled: "
        "entries kept, but not summed because the other delta's sign won.",
    )


def _name(pair: InspectedPair) -> str:
    return f"{pair.first} and {pair.second}" if pair.first or pair.second else BLANK


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
    details = [table for table in (layer_table(inspection), module_table(inspection)) if table is not None]
    return Part([sparsity_table(inspection), size_table(inspection)], details, drawn, missing)


def pairs_part(inspection: Inspection) -> Part:
    """Interference."""
    drawn, missing = shown(inspection_plots(inspection, "interference"))
    tables = [table for table in (pair_table(inspection),) if table is not None]
    details = [table for table in (election_table(inspection),) if table is not None]
    return Part(tables, details, drawn, missing)


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
    headline = f"{sparsest} is {shares[sparsest]:.1%} sparse at {threshold_label(threshold)}"
    others = [f"{name} {share:.1%}" for name, share in shares.items() if name != sparsest]
    lead = f"That share of its entries has |δ| ≤ {threshold_label(threshold)}"
    lead += f"; {joined(others)}." if others else "."
    pairs = [pair for pair in inspection.pairs if pair.figures.total.conflict_weight is not None]
    if pairs:
        worst = max(pairs, key=lambda pair: (pair.figures.total.opposing, pair.first))
        weight = worst.figures.total.conflict_weight or 0.0
        lead += f" The strongest interference is between {worst.first} and {worst.second}: of what both change, signs oppose in "
        lead += f"{weight:.0%} by magnitude."
    return headline, lead
