"""What benchmarks of whole models share: their command line, and calls in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar
from unittest.mock import patch

import click
from rich.console import Console

from paft_plugin.figures import Row, as_json, as_table
from paft_plugin.files import write_json

T = TypeVar("T")
Size = TypeVar("Size")


@dataclass(frozen=True)
class Benchmark(Generic[Size]):
    """What is measured, and of what."""

    measure: Callable[[Size, int, Path], list[Row]]
    """Takes a size, the number of repeats, and a folder for the models."""
    full: Size
    """A dataclass."""
    quick: Size
    packages: Sequence[str]
    """Whose versions matter."""
    repeats: int

    def command(self, text: str) -> click.Command:
        """Its command line, with `text` as its help."""

        @click.command(help=text)
        @click.option("--quick", is_flag=True, help="A small model: shows that the benchmark runs, and no more.")
        @click.option(
            "--repeats", type=click.IntRange(min=1), default=self.repeats, show_default=True, help="Of each kind."
        )
        @click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
        @click.option("--work", type=click.Path(path_type=Path), help="Where the models go. [a temporary folder]")
        def main(quick: bool, repeats: int, output: Path | None, work: Path | None) -> None:
            size: Any = self.quick if quick else self.full
            with TemporaryDirectory(dir=work, prefix="paft-benchmark-") as folder:
                rows = self.measure(size, repeats, Path(folder))
            Console().print(as_table(rows))
            for row in rows:
                click.echo(f"{row.name}: {row.note}")
            if output:
                conditions = {
                    "quick": quick,
                    "size": asdict(size),
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
                }
                write_json(output, as_json(rows, self.packages, conditions))

        return main


def apart(function: Callable[..., T], *arguments: Any, environment: Mapping[str, str] | None = None) -> T:
    """A call in a process of its own, with more in its environment: peak memory is a process's."""
    with patch.dict(os.environ, environment or {}), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
