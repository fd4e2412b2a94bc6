"""The table of all arms, for the terminal, for Markdown and for machines, from one list of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from paft_plugin.evaluation.arms import MEASURES, ArmResult, alignment_tax

SCHEMA = 1
BLANK = "–"


@dataclass(frozen=True)
class Column:
    """A heading and the text of a cell."""

    heading: str
    cell: Callable[[ArmResult], str]
    is_number: bool = True


def columns(results: Sequence[ArmResult]) -> list[Column]:
    """The columns for `results`: arm, measures, alignment tax, and a sparsity for each threshold that any arm has."""
    tax = alignment_tax(results)
    thresholds = sorted({key for result in results for key in result.sparsity or {}}, key=float)
    return [
        Column("Arm", lambda result: result.arm, is_number=False),
        *(Column(measure.name.capitalize(), _share(measure.name)) for measure in MEASURES),
        Column("Alignment tax", lambda result: _number(tax.get(result.arm), "{:+.2f}")),
        *(Column(f"Sparsity at {threshold}", _sparsity(threshold)) for threshold in thresholds),
    ]


def _number(value: float | None, form: str) -> str:
    """`value` in `form`, a blank for None, and never a negative zero."""
    if value is None:
        return BLANK
    text = form.format(value)
    return text.replace("-", "+") if text.strip("-+0. %") == "" else text


def _share(measure: str) -> Callable[[ArmResult], str]:
    return lambda result: _number(getattr(result, measure), "{:.2f}")


def _sparsity(threshold: str) -> Callable[[ArmResult], str]:
    return lambda result: _number((result.sparsity or {}).get(threshold), "{:.1%}")


def terminal_table(results: Sequence[ArmResult], title: str | None = None) -> Table:
    """The table for `rich` to print; whole at 80 columns with two thresholds."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    shown = columns(results)
    for column in shown:
        heading = column.heading.replace(" at ", "\nat ").replace(" tax", "\ntax")
        table.add_column(heading, justify="right" if column.is_number else "left", no_wrap=True)
    for result in results:
        # Text, so that nothing in a name is taken for markup.
        table.add_row(*(Text(column.cell(result)) for column in shown))
    return table


def markdown_table(results: Sequence[ArmResult]) -> str:
    """The table as Markdown, padded so that its source reads as a table too."""
    shown = columns(results)
    rows = [[column.heading for column in shown]]
    rows += [[column.cell(result).replace("|", r"\|") for column in shown] for result in results]
    widths = [max(3, *(len(row[index]) for row in rows)) for index in range(len(shown))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(cells, widths, shown, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + ":" if c.is_number else "-" * width for c, width in zip(shown, widths, strict=True)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])]) + "\n"


def results_content(results: Sequence[ArmResult]) -> dict[str, Any]:
    """What `results.json` holds: every arm as it was measured, unrounded, with its alignment tax."""
    tax = alignment_tax(results)
    return {"schema": SCHEMA, "arms": [_arm_content(result, tax) for result in results]}


def _arm_content(result: ArmResult, tax: Mapping[str, float]) -> dict[str, Any]:
    return {
        "arm": result.arm,
        **{measure.name: getattr(result, measure.name) for measure in MEASURES},
        "alignment_tax": tax.get(result.arm),
        "stderr": dict(result.stderr),
        "sparsity": None if result.sparsity is None else dict(result.sparsity),
        "model": result.model,
    }
