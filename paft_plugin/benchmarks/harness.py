"""What every benchmark does: figures beside their bars, a table for people, JSON for machines, work in processes of its own.

Medians stand beside their extremes, because a machine that others use gives other numbers each time, and the JSON holds every raw
timing.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from unittest.mock import patch

import click
import torch
from rich.console import Console

from paft_plugin.files import write_json
from paft_plugin.formats import BLANK
from paft_plugin.machine import installed
from paft_plugin.tables import Cell, Column, Row, Table

SCHEMA = 1
MIB = 1 << 20


@dataclass(frozen=True)
class Figure:
    """One number of the table; `low` and `high` are the extremes of what its median was taken of."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_most: float | None = None
    """Its bar, or `at_least`; not both."""
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether its bar is met; None if it has none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True)
class BenchmarkRow:
    """A named comparison."""

    name: str
    figures: list[Figure]
    timings: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    failed: bool = False
    """Whether `note` says why there are no figures, and there should be."""


def figure(
    what: str, samples: Sequence[float], unit: str, at_most: float | None = None, at_least: float | None = None
) -> Figure:
    """The median of `samples`, and their extremes."""
    return Figure(what, median(samples), unit, min(samples), max(samples), at_most, at_least)


def quotients(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each of `ones` by its neighbour in time among `others`, so that a machine that slows down slows both."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def as_table(rows: Sequence[BenchmarkRow]) -> Table:
    """Each row's name, and a line for each of its figures; whole at 80 columns."""
    lines = []
    for row in rows:
        name = row.name if row.figures else f"{row.name}: {row.note}"
        lines.append(Row([Cell(name), *[Cell("")] * 4], is_marked=True, ends_section=not row.figures))
        for figure in row.figures:
            cells = map(Cell, (f"  {figure.what}", *_cells(figure)))
            lines.append(Row(list(cells), ends_section=figure is row.figures[-1]))
    numbers = map(Column, ("Median", "Min – max", "Bar"))
    return Table([Column("Figure", is_number=False), *numbers, Column("Met", is_number=False)], lines)


def _cells(figure: Figure) -> tuple[str, str, str, str]:
    extremes = BLANK
    if figure.low is not None and figure.high is not None:
        extremes = f"{_number(figure.low)} – {_number(figure.high)}"
    bars = {"≥": figure.at_least, "≤": figure.at_most}
    bar = ", ".join(f"{sign} {_number(bar)}" for sign, bar in bars.items() if bar is not None) or BLANK
    met = {None: BLANK, True: "yes", False: "NO"}[figure.met]
    return f"{_number(figure.value)} {figure.unit}".rstrip(), extremes, bar, met


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.4g}"


def as_json(rows: Sequence[BenchmarkRow], packages: Sequence[str], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured, on what, with which `packages`, and how (`conditions`)."""
    return {
        "schema": SCHEMA,
        **conditions,
        "versions": {"python": platform.python_version(), **installed(packages)},
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "rows": [
            {**asdict(row), "figures": [{**asdict(figure), "met": figure.met} for figure in row.figures]}
            for row in rows
        ],
    }


T = TypeVar("T")
Size = TypeVar("Size")

output_option = click.option(
    "--output", "--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write."
)


def run_benchmark(
    rows: Iterable[BenchmarkRow], output: Path | None, packages: Sequence[str], conditions: Mapping[str, Any]
) -> list[BenchmarkRow]:
    """Measure `rows`, which are measured as they are asked for, show and return them.

    `output` is written anew after each: what was measured so far outlives an interruption.
    """
    done: list[BenchmarkRow] = []
    for row in rows:
        done.append(row)
        if output:
            write_json(output, as_json(done, packages, conditions))
    Console().print(as_table(done))
    for row in done:
        if row.note:
            click.echo(f"{row.name}: {row.note}")
    return done


def sized_command(
    text: str,
    measure: Callable[[Size, int, Path], Iterable[BenchmarkRow]],
    full: Size,
    quick: Size,
    packages: Sequence[str],
    repeats: int,
) -> click.Command:
    """The command line of a benchmark on models of a size (a dataclass; `quick` is that of `--quick`), which are made for it.

    `measure` takes a size, the number of repeats, and a folder for the models.
    """
    sizes: dict[bool, Any] = {False: full, True: quick}

    @click.command(help=text)
    @click.option("--quick", is_flag=True, help="A small model: shows that the benchmark runs, and no more.")
    @click.option("--repeats", type=click.IntRange(min=1), default=repeats, show_default=True, help="Of each kind.")
    @output_option
    @click.option("--work", type=click.Path(path_type=Path), help="Where the models go. [a temporary folder]")
    def command(quick: bool, repeats: int, output: Path | None, work: Path | None) -> None:
        size = sizes[quick]
        conditions = {"quick": quick, "size": asdict(size), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
        with TemporaryDirectory(dir=work, prefix="paft-benchmark-") as folder:
            run_benchmark(measure(size, repeats, Path(folder)), output, packages, conditions)

    return command


def megabytes(usage: resource.struct_rusage) -> float:
    """The most memory that a process held."""
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def apart(function: Callable[..., T], *arguments: Any, environment: Mapping[str, str] | None = None) -> T:
    """A call in a process of its own, with more in its environment: peak memory is a process's."""
    with patch.dict(os.environ, environment or {}), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
