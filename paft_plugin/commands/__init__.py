"""The commands of `axolotl paft`, one a file: arguments and printing only; whatever is heavy is imported inside them.

Here is what several of them take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
FOLDER, FILE = click.Path(path_type=Path, file_okay=False), click.Path(path_type=Path, dir_okay=False)
SEEDS = click.IntRange(0, 2**32 - 1)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def json_option(what: str) -> Decorator:
    """`--json FILE`, which the command gets as `json_file`."""
    return click.option("--json", "json_file", metavar="FILE", type=FILE, help=f"Write {what} there, for machines.")
