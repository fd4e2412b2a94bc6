"""The table of all arms, for the terminal, for Markdown and for machines, from one list of columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paft_plugin.evaluation.results import ArmResult, Comparison, Measure

SCHEMA = 2
BLANK = "–"
HEADING_WIDTHS = (10, 7)
"""Characters after which a heading of the terminal's table goes on in its next line: as is readable, and as is bearable."""
EDGE = GAP = 1
"""Left and right of the terminal's table, and between its columns; as `SIMPLE_HEAD` draws it."""


@dataclass(frozen=True)
class Column:
    """A heading and the text of a cell."""

    heading: str
    cell: Callable[[ArmResult], str]
    is_number: bool = True


ARM = Column("Arm", lambda result: result.arm, is_number=False)


def score_columns(comparison: Comparison) -> list[Column]:
    """A column for each measure, and one for the alignment tax if a measure stands for the skill."""
    shown = [Column(_heading(measure), _score(measure.name)) for measure in comparison.measures]
    if comparison.skill is not None:
        tax = comparison.alignment_tax()
        shown.append(Column("Alignment tax", lambda result: _number(tax.get(result.arm), "+.2f")))
    return shown


def sparsity_columns(comparison: Comparison) -> list[Column]:
    """A column for each threshold at which any arm's sparsity was measured."""
    return [Column(f"Sparsity at {threshold}", _sparsity(threshold)) for threshold in comparison.thresholds]


def _heading(measure: Measure) -> str:
    """A person's word for it with a capital; lm-eval's own as it is."""
    name = measure.name
    return name if name == measure.task else name[:1].upper() + name[1:]


def _number(value: float | None, form: str) -> str:
    """`value` in `form`, a blank for None, and never a negative zero."""
    if value is None:
        return BLANK
    text = format(value, form)
    return text.replace("-", "+" if form.startswith("+") else "") if text.strip("-+0. %") == "" else text


def _score(measure: str) -> Callable[[ArmResult], str]:
    return lambda result: _number(result.scores.get(measure), ".2f")


def _sparsity(threshold: str) -> Callable[[ArmResult], str]:
    return lambda result: _number((result.sparsity or {}).get(threshold), ".1%")


def terminal_table(comparison: Comparison, width: int = 80) -> RenderableType:
    """The table for `rich` to print, never cut: whole at 80 columns with four measures, two thresholds and arms of 18 letters.

    Where it is wider than `width`, the thresholds are left out, which a line below says. Measures that don't fit then, either,
    follow in a further table of the same arms.
    """
    scores, sparsities = score_columns(comparison), sparsity_columns(comparison)
    for heading in HEADING_WIDTHS:
        whole = _Layout(comparison.results, [ARM, *scores, *sparsities], heading)
        if whole.width <= width:
            return whole.table()
    parts: list[RenderableType] = [layout.table() for layout in _fitting(comparison, width)]
    if sparsities:
        at = ", ".join(comparison.thresholds)
        parts.append(Text(f"Too narrow for the sparsity at {at}: see results.json, or widen the terminal."))
    return Group(*parts)


def _fitting(comparison: Comparison, width: int) -> list[_Layout]:
    """The measures' columns in as few tables as fit, at least one in each."""
    tables: list[_Layout] = []
    for column in score_columns(comparison):
        if tables:
            longer = replace(tables[-1], columns=[*tables[-1].columns, column])
            if longer.width <= width:
                tables[-1] = longer
                continue
        tables.append(_Layout(comparison.results, [ARM, column], HEADING_WIDTHS[0]))
    return tables


@dataclass(frozen=True)
class _Layout:
    """Some columns of the terminal's table, with headings of a width."""

    results: Sequence[ArmResult]
    columns: Sequence[Column]
    heading: int

    @property
    def width(self) -> int:
        widths = [
            max(map(len, [*_lines(column.heading, self.heading), *map(column.cell, self.results)]))
            for column in self.columns
        ]
        return 2 * EDGE + sum(widths) + GAP * (len(widths) - 1)

    def table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
        for column in self.columns:
            heading = "\n".join(_lines(column.heading, self.heading))
            table.add_column(Text(heading), justify="right" if column.is_number else "left", no_wrap=True)
        for result in self.results:
            # Text, so that nothing in a name is taken for markup.
            table.add_row(*(Text(column.cell(result)) for column in self.columns))
        return table


def _lines(heading: str, width: int) -> list[str]:
    """A heading in lines, broken at its spaces; a name without any before its joints (`gsm8k_strict-match`), or anywhere."""
    if " " in heading:
        pieces = re.findall(r" ?[^ ]+", heading)
    else:
        joined = re.findall(r"[_.-]?[^_.-]*", heading)
        pieces = [piece[start : start + width] for piece in joined for start in range(0, len(piece), width)]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip(" ")
    return lines


def markdown_table(comparison: Comparison) -> str:
    """The table as Markdown, padded so that its source reads as a table too."""
    shown = [ARM, *score_columns(comparison), *sparsity_columns(comparison)]
    rows = [[column.heading.replace("|", r"\|") for column in shown]]
    rows += [[column.cell(result).replace("|", r"\|") for column in shown] for result in comparison.results]
    widths = [max(3, *(len(row[index]) for row in rows)) for index in range(len(shown))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(cells, widths, shown, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + ":" if c.is_number else "-" * width for c, width in zip(shown, widths, strict=True)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])]) + "\n"


def results_content(comparison: Comparison) -> dict[str, Any]:
    """What `results.json` holds: every arm as it was measured, unrounded, with its alignment tax."""
    tax = comparison.alignment_tax()
    return {
        "schema": SCHEMA,
        "measures": [measure.content() for measure in comparison.measures],
        "skill": comparison.skill,
        "preference": comparison.preference,
        "thresholds": comparison.thresholds,
        "arms": [_arm_content(result, tax) for result in comparison.results],
    }


def _arm_content(result: ArmResult, tax: Mapping[str, float]) -> dict[str, Any]:
    return {
        "arm": result.arm,
        "scores": dict(result.scores),
        "stderr": dict(result.stderr),
        "n": dict(result.n),
        "alignment_tax": tax.get(result.arm),
        "sparsity": None if result.sparsity is None else dict(result.sparsity),
        "model": result.model,
    }
