"""A table is the same cells in a terminal, in Markdown and on a page, and never cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from paft_plugin.tables import Cell, Column, Row, Table, as_markdown, number_cell

NAMES = Column("Name", is_number=False)


def printed(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_is_padded_and_marked_rows_are_bold() -> None:
    rows = [Row([Cell("a|b"), Cell("0.5", error="0.1")], is_marked=True), Row([Cell("c"), number_cell(None, str)])]
    assert as_markdown(Table([NAMES, Column("Score")], rows)).splitlines() == [
        "| Name     |         Score |",
        "| -------- | ------------: |",
        r"| **a\|b** | **0.5 ± 0.1** |",
        "| c        |             – |",
    ]


def test_a_name_is_no_markup() -> None:
    assert "[bold]a|b[/]" in printed(Table([NAMES, Column("[x]y|z")], [Row([Cell("[bold]a|b[/]"), Cell("1")])]), 80)


def test_turned_it_is_the_same_cells_and_twice_the_same_table() -> None:
    table = Table([NAMES, Column("One"), Column("Two")], [Row([Cell("a"), Cell("1"), Cell("2")])] * 2)
    turned = table.turned()
    assert [[cell.text for cell in row.cells] for row in turned.rows] == [["One", "1", "1"], ["Two", "2", "2"]]
    assert [[cell.text for cell in row.cells] for row in turned.turned().rows] == [["a", "1", "2"]] * 2


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_whatever_the_width_every_cell_is_there(width: int) -> None:
    columns = [NAMES, Column("Settings", is_number=False), *(Column(f"a_long_measure_{place}") for place in range(9))]
    cells = [Cell("name"), Cell("density 0.5, weights 0.3/0.7"), *(Cell(f"0.{place}") for place in range(9))]
    text = printed(Table(columns, [Row(cells)]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert [word for word in text.split() if word.startswith("0.") and "/" not in word and len(word) == 3] == [
        f"0.{place}" for place in range(9)
    ]
    for word in ("density", "0.5,", "weights", "0.3/0.7"):
        assert word in text


def test_an_optional_column_goes_first_and_is_named() -> None:
    table = Table(
        [NAMES, Column("Score"), Column("Sparsity at 1e-5", is_optional=True)],
        [Row([Cell("a_name_of_20_letters"), Cell("0.50"), Cell("100.0%")])],
        elsewhere="results.json",
    )
    assert "100.0%" in printed(table, 80)
    narrow = printed(table, 30)
    assert "0.50" in narrow
    assert "100.0%" not in narrow
    assert "Too narrow for sparsity at 1e-5: see results.json" in " ".join(narrow.split())
