"""The tables of an inspection, for its page and for the terminal: what each delta is like, and how every two interfere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paft_plugin.formats import BLANK, measured, number, plain_number, share, signed, threshold_key
from paft_plugin.inspection.inspected import InspectedDelta, InspectedPair, Inspection
from paft_plugin.inspection.measures import Measures
from paft_plugin.inspection.plots import MOST_PAIRS, OUTCOMES, conflict_share, outcome_share, plotted_threshold
from paft_plugin.tables import Cell, Column, Row, Table, number_cell

Figure = Callable[[Measures], Cell]
"""What a column of a table of deltas shows of each."""


def sparsity_table(inspection: Inspection) -> Table:
    """A row for each delta: sparsity in all its senses."""

    def sparsity(threshold: float) -> Figure:
        return lambda total: number_cell(total.sparsity(threshold), share)

    def hidden(dtype: str) -> Figure:
        return lambda total: number_cell(total.unseen[dtype] / total.entries if dtype in total.unseen else None, share)

    dtypes = sorted({dtype for delta in inspection.deltas for dtype in delta.figures.total.unseen})
    figures: dict[str, Figure] = {
        "Entries": lambda total: number_cell(total.entries, "{:,}".format),
        "Exactly 0": lambda total: number_cell(total.zero_share, share),
        **{f"|δ| ≤ {plain_number(threshold)}": sparsity(threshold) for threshold in inspection.thresholds},
        **{f"Hidden in {dtype}": hidden(dtype) for dtype in dtypes},
    }
    return Table(
        [Column("Delta", is_number=False), Column("Kind", is_number=False), *map(Column, figures)],
        [Row([Cell(each.name), Cell(each.kind), *_cells(figures, each)]) for each in inspection.deltas],
        "deltas",
        "How sparse every delta is",
        "Shares of its entries. Hidden: those that vanish when θ_pre + δ is rounded to that dtype (arXiv 2505.11711).",
    )


def size_table(inspection: Inspection) -> Table:
    """A row for each delta: how much of it few entries hold, and its norms."""
    figures: dict[str, Figure] = {
        "Hoyer": lambda total: number_cell(total.hoyer, number),
        "Gini": lambda total: number_cell(total.gini, number),
        "‖δ‖₁ in the top 1 %": lambda total: number_cell(total.top_1_percent, share),
        "In the top 10 %": lambda total: number_cell(total.top_10_percent, share),
        "‖δ‖₁": lambda total: number_cell(total.l1, measured),
        "‖δ‖₂": lambda total: number_cell(total.l2, measured),
        "max |δ|": lambda total: number_cell(total.largest, measured),
        "‖δ‖₂ / ‖θ_pre‖₂": lambda total: number_cell(total.relative, measured),
    }
    return Table(
        [Column("Delta", is_number=False), *map(Column, figures)],
        [Row([Cell(each.name), *_cells(figures, each)]) for each in inspection.deltas],
        "sizes",
        "How concentrated and how large every delta is",
        "Hoyer, Gini and the shares of the top entries do not depend on scale, so that a merely small delta isn't called sparse: "
        "Hoyer and Gini are 0 if all entries are equal, near 1 if few hold everything.",
    )


def _cells(figures: dict[str, Figure], delta: InspectedDelta) -> list[Cell]:
    return [figure(delta.figures.total) for figure in figures.values()]


def module_table(inspection: Inspection) -> Table | None:
    """Sparsity of each kind of module, a column for each delta; None without a threshold."""
    names = {module: None for delta in inspection.deltas for module in delta.figures.modules}
    return _sparsity_of(inspection, "modules", "kind of module", list(names))


def layer_table(inspection: Inspection) -> Table | None:
    """Sparsity of each layer, a column for each delta; None without a threshold or layers."""
    layers = sorted({layer for delta in inspection.deltas for layer in delta.figures.layers})
    return _sparsity_of(inspection, "layers", "layer", layers)


def _sparsity_of(inspection: Inspection, name: str, what: str, groups: Sequence[int | str]) -> Table | None:
    threshold = plotted_threshold(inspection)
    if threshold is None or not groups:
        return None
    rows = []
    for group in groups:
        cells = []
        for delta in inspection.deltas:
            figures = delta.figures.layers.get(group) if isinstance(group, int) else delta.figures.modules.get(group)
            cells.append(number_cell(None if figures is None else figures.sparsity(threshold), share))
        rows.append(Row([Cell(str(group), group if isinstance(group, int) else None), *cells]))
    return Table(
        [Column(what.capitalize(), is_number=False), *(Column(delta.name) for delta in inspection.deltas)],
        rows,
        name,
        f"Sparsity at {plain_number(threshold)} by {what}",
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
        conflicts = (conflict_share(total, threshold), overlap.conflict_share, total.conflict_weight)
        shares = [number_cell(each, share) for each in (overlap.jaccard, *conflicts)]
        rows.append(Row([Cell(_name(pair)), *shares, number_cell(total.cosine, signed)]))
    at = plain_number(threshold)
    kinds = [f"Sign conflicts, {of}" for of in ("of all entries", "of shared entries", "by magnitude")]
    return Table(
        [Column("Pair", is_number=False), *map(Column, (f"Supports' overlap at {at}", *kinds, "Cosine"))],
        rows,
        "pairs",
        "Interference of each pair of deltas",
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
                parts = [
                    (part[place], whole[place])
                    for place in (0, 1)
                    for part, whole in ((election.trimmed, election.nonzero), (election.lost, election.kept))
                ]
                cells = [number_cell(part / whole if whole else None, share) for part, whole in parts]
                rows.append(Row([Cell(_name(pair)), Cell(method), Cell(f"{float(density):g}", float(density)), *cells]))
    if not rows:
        return None
    headings = ("Density", *(f"{which}: {what}" for which in ("First", "Second") for what in ("trimmed", "overruled")))
    return Table(
        [Column("Pair", is_number=False), Column("Method", is_number=False), *map(Column, headings)],
        rows,
        "elections",
        "What a merge with equal weights would do",
        "First and second are the deltas as the pair names them. Trimmed: entries not 0 that the density removes. Overruled: "
        "entries kept, but not summed because the other delta's sign won.",
    )


def votes_table(inspection: Inspection) -> Table | None:
    """What becomes of each branch's entries ≠ 0 when TIES fuses all at once, at each density; None of fewer than three."""
    if inspection.elections is None:
        return None
    rows = []
    for density, votes in sorted(inspection.elections.total.ties.items(), key=lambda each: -float(each[0])):
        whole = sum(vote.mass for vote in votes.values())
        for place, (name, vote) in enumerate(votes.items(), 1):
            shares = [*(outcome_share(vote, what) for what in OUTCOMES), vote.mass / whole if whole else None]
            cells = [
                Cell(name),
                Cell(f"{float(density):g}", float(density)),
                *(number_cell(each, share) for each in shares),
            ]
            rows.append(Row(cells, ends_section=place == len(votes)))
    headings = ("Density", *(what.capitalize() for what in OUTCOMES), "Of the merged Σ|δ|")
    return Table(
        [Column("Of δ ≠ 0", is_number=False), *map(Column, headings)],
        rows,
        "votes",
        "The election of signs among all branches at once",
        "As TIES holds it, with equal weights. Lost to one: overruled where a single entry of another branch outweighs all "
        "entries of this sign; lost to several: where only a coalition does.",
    )


def ties_table(inspection: Inspection) -> Table | None:
    """What becomes of each pair's entries ≠ 0 under TIES, the first's and the second's, at each density; None without pairs."""
    rows = []
    for pair in inspection.pairs:
        for place, density in enumerate(inspection.densities):
            election = pair.figures.total.ties[threshold_key(density)]
            cells = [
                " / ".join(
                    share(part / whole if whole else None) for part, whole in zip(each, election.nonzero, strict=True)
                )
                for each in (election.trimmed, election.lost, election.elected)
            ]
            rows.append(Row([Cell("" if place else _name(pair)), Cell(f"{density:g}"), *map(Cell, cells)]))
    headings = ("Density", "Trimmed", "Lost", "Elected")
    return Table([Column("TIES, of δ ≠ 0", is_number=False), *map(Column, headings)], rows) if rows else None


def _name(pair: InspectedPair) -> str:
    return f"{pair.first} and {pair.second}" if pair.first or pair.second else BLANK


def terminal_tables(inspection: Inspection) -> list[Table]:
    """A column for each delta, then a row for each pair, then what TIES makes of each pair, or of all where they are many."""
    tables = [sparsity_table(inspection).turned(), size_table(inspection).turned(), pair_table(inspection)]
    elections = [ties_table(inspection)] if len(inspection.pairs) <= MOST_PAIRS else []
    return [table for table in (*tables, *elections, votes_table(inspection)) if table is not None]
