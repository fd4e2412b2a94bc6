"""A table as a value, shown in four ways: in a terminal (`console.print(table)`), in Markdown (`as_markdown`), in LaTeX
(`as_latex`), and on a page (the macro `table` of `report/templates/parts.html`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paft_plugin.formats import BLANK

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

VERDICT_WORDS = {
    "": "",
    "best": "",
    "better": "▲ better",
    "worse": "▼ worse",
    "equivalent": "= equivalent",
    "unclear": "? not told apart",
}
LAYOUTS = ((None, 2), (None, 1), (10, 1), (7, 1))
"""How a terminal's table is laid out, the first that fits: characters after which a heading goes on in its next line, and
spaces between columns."""
EDGE = 1
"""Left and right of a terminal's table, as `SIMPLE_HEAD` draws it."""


@dataclass(frozen=True)
class Column:
    """A heading; numbers are set to the right, and on a page sorted from the greatest."""

    heading: str
    is_number: bool = True
    is_optional: bool = False
    """Whether a terminal that is too narrow for all may leave it out."""

    @property
    def unbroken(self) -> str:
        """The heading such that a narrow column of a page breaks no threshold (`1e-5`) at its hyphen."""
        return re.sub(r"(?<=\de)-(?=\d)", "\N{NON-BREAKING HYPHEN}", self.heading)


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what a page sorts its column by."""

    text: str
    order: float | str | None = None
    """A number; `""` for what was not measured, which stays last; None to sort by the text."""
    error: str = ""
    """How far a number's interval reaches; a terminal has no room for it."""
    verdict: str = ""
    detail: str = ""
    """A second line, smaller; on a page only."""

    @property
    def word(self) -> str:
        """The verdict as a page says it."""
        return VERDICT_WORDS[self.verdict]

    @property
    def whole(self) -> str:
        """The text with its error."""
        return f"{self.text} ± {self.error}" if self.error else self.text


@dataclass(frozen=True)
class Row:
    """The first cell is the row's heading; a page puts `tag` beside it. A marked row is bold in a terminal and in Markdown."""

    cells: Sequence[Cell]
    is_marked: bool = False
    tag: str = ""
    ends_section: bool = False
    """Whether a terminal draws a line below."""


@dataclass(frozen=True)
class Table:
    """Columns and rows; on a page with a caption, which also names it to screen readers, and a note."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    name: str = ""
    caption: str = ""
    note: str = ""
    elsewhere: str = ""
    """Where optional columns are found that a terminal left out."""

    def turned(self) -> Table:
        """Rows as columns and columns as rows."""
        columns = [Column(self.columns[0].heading, is_number=False), *(Column(row.cells[0].text) for row in self.rows)]
        rows = [
            Row([Cell(column.heading), *(row.cells[place] for row in self.rows)])
            for place, column in enumerate(self.columns[1:], 1)
        ]
        return replace(self, columns=columns, rows=rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Never cut: where it is too wide for a terminal, optional columns are left out, and others go on in a further table."""
        from rich.text import Text

        parts, left_out = _fitting(self, options.max_width)
        yield from (part.as_rich(options.max_width) for part in parts)
        if left_out:
            what = ", ".join(column.heading[:1].lower() + column.heading[1:] for column in left_out)
            yield Text(f"Too narrow for {what}: see {self.elsewhere}, or widen the terminal.")


def number_cell(value: float | None, form: Callable[[float], str], error: float | None = None) -> Cell:
    """`value` and how far its interval reaches as `form` writes them (see `formats`), or a blank."""
    text = BLANK if value is None else form(value)
    return Cell(text, "" if text == BLANK else value, "" if error is None else form(error))


def as_markdown(table: Table) -> str:
    """The table as Markdown, padded so that its source reads as a table too."""

    def cells(row: Row) -> list[str]:
        mark = "**" if row.is_marked else ""
        return [" ".join(f"{mark}{cell.whole}{mark}".split()).replace("|", r"\|") for cell in row.cells]

    lines = [[column.heading.replace("|", r"\|") for column in table.columns], *map(cells, table.rows)]
    widths = [max(3, *map(len, texts)) for texts in zip(*lines, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if column.is_number else "-" * width
        for column, width in zip(table.columns, widths, strict=True)
    ]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if column.is_number else text.ljust(width)
            for text, width, column in zip(texts, widths, table.columns, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, [lines[0], rule, *lines[1:]]))


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "→": r"$\rightarrow$",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "λ": r"$\lambda$",
    "δ": r"$\delta$",
    "α": r"$\alpha$",
    "‖": r"$\Vert$",
    "₁": "$_1$",
    "₂": "$_2$",
    "–": "--",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
}
"""Character → what LaTeX sets it by; others than these and ASCII are left to an engine that knows UTF-8."""


def as_latex(table: Table) -> str:
    """The table for `booktabs`, with its caption and note, to be put into a document by `\\input`."""

    def line(texts: Sequence[str]) -> str:
        cells = " & ".join(map(latex, texts))
        # After the line before, LaTeX would take these for what \\ may be followed by.
        return f"{'{}' if cells[:1] in ('[', '*') else ''}{cells} \\\\"

    lines = [
        r"\begin{table}",
        rf"\caption{{{latex(table.caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', table.name)}}}",
        r"\centering\small",
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if column.is_number else 'l' for column in table.columns)}@{{}}}}",
        r"\toprule",
        line([column.heading for column in table.columns]),
        r"\midrule",
    ]
    for row in table.rows:
        texts = line([cell.whole for cell in row.cells])
        lines.append(texts if not row.is_marked else rf"\bfseries {texts}".replace(" & ", r" & \bfseries "))
        lines += [r"\midrule"] if row.ends_section and row is not table.rows[-1] else []
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {latex(table.note)}"] if table.note else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def latex(text: str) -> str:
    """`text` such that LaTeX sets it and obeys nothing in it."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


@dataclass(frozen=True)
class _Layout:
    """Some columns of a table in a terminal."""

    table: Table
    places: Sequence[int]
    heading: int | None
    gap: int

    @property
    def width(self) -> int:
        """Characters that it takes, with text broken at its spaces where that is necessary."""
        widths = [max(map(len, self._unbroken(place)), default=0) for place in self.places]
        return 2 * EDGE + sum(widths) + self.gap * (len(widths) - 1)

    def _unbroken(self, place: int) -> list[str]:
        texts = [row.cells[place].text for row in self.table.rows if place < len(row.cells)]
        if not self.table.columns[place].is_number:
            texts = [word for text in texts for word in text.split()]
        return [*_lines(self.table.columns[place].heading, self.heading), *texts]

    def as_rich(self, width: int) -> RichTable:
        """For `rich` to draw in so many characters."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, self.gap - 1, 0, 0), pad_edge=False)
        for place in self.places:
            column = self.table.columns[place]
            is_unbroken = column.is_number or not any(" " in row.cells[place].text for row in self.table.rows)
            # Text, so that nothing in a name is taken for markup.
            drawn.add_column(
                Text("\n".join(_lines(column.heading, self.heading))),
                justify="right" if column.is_number else "left",
                no_wrap=is_unbroken and self.width <= width,
                overflow="fold",
            )
        for row in self.table.rows:
            cells = [Text(row.cells[place].text) for place in self.places]
            drawn.add_row(*cells, style="bold" if row.is_marked else None, end_section=row.ends_section)
        return drawn


def _fitting(table: Table, width: int) -> tuple[list[_Layout], list[Column]]:
    """The table in as few parts as fit into `width`, each with the first column, and the columns that were left out."""
    every = range(len(table.columns))
    for heading, gap in LAYOUTS:
        whole = _Layout(table, every, heading, gap)
        if whole.width <= width:
            return [whole], []
    needed = [place for place in every if not table.columns[place].is_optional]
    parts: list[_Layout] = []
    for place in needed[1:]:
        if parts:
            longer = replace(parts[-1], places=[*parts[-1].places, place])
            if longer.width <= width:
                parts[-1] = longer
                continue
        parts.append(_Layout(table, [needed[0], place], 10, 1))
    return parts, [table.columns[place] for place in every if place not in needed]


def _lines(heading: str, width: int | None) -> list[str]:
    """A heading in lines, broken at its spaces; a name without any before its joints (`gsm8k_strict-match`), or anywhere."""
    if width is None:
        return [heading]
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
