"""What benchmarks of whole models share: their command line, and calls in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from unittest.mock import patch

import click
from rich.console import Console

from paft_plugin.figures import Row, as_json, as_table
from paft_plugin.files import write_json

T = TypeVar("T")
Size = TypeVar("Size")


def benchmark_command(
    text: str,
    measure: Callable[[Size, int, Path], list[Row]],
    *,
    full: Size,
    quick: Size,
    packages: Sequence[str],
    repeats: int,
) -> click.Command:
    """The command line of a benchmark.

    Args:
        text: Its help.
        measure: Takes a size, the number of repeats, and a folder for the models.
        full: The size that is measured, a dataclass.
        quick: That of `--quick`.
        packages: Whose versions matter.
        repeats: How often, unless it is said.
    """
    sizes: dict[bool, Any] = {False: full, True: quick}

    @click.command(help=text)
    @click.option("--quick", is_flag=True, help="A small model: shows that the benchmark runs, and no more.")
    @click.option("--repeats", type=click.IntRange(min=1), default=repeats, show_default=True, help="Of each kind.")
    @click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
    @click.option("--work", type=click.Path(path_type=Path), help="Where the models go. [a temporary folder]")
    def command(quick: bool, repeats: int, output: Path | None, work: Path | None) -> None:
        size = sizes[quick]
        with TemporaryDirectory(dir=work, prefix="paft-benchmark-") as folder:
            rows = measure(size, repeats, Path(folder))
        Console().print(as_table(rows))
        for row in rows:
            click.echo(f"{row.name}: {row.note}")
        if output:
            threads = os.environ.get("OMP_NUM_THREADS")
            conditions = {"quick": quick, "size": asdict(size), "OMP_NUM_THREADS": threads}
            write_json(output, as_json(rows, packages, conditions))

    return command


def apart(function: Callable[..., T], *arguments: Any, environment: Mapping[str, str] | None = None) -> T:
    """A call in a process of its own, with more in its environment: peak memory is a process's."""
    with patch.dict(os.environ, environment or {}), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
