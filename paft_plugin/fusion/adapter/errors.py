"""What a fused adapter misses of the fused delta: per module and in total, and what rank would miss less."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from paft_plugin.fusion.adapter.parts import kind_of


@dataclass(frozen=True)
class ModuleError:
    """One module of the adapter."""

    module: str
    rank: int
    square: float
    """‖δ‖² (Frobenius) of the fused delta."""
    squared_error: float
    """‖δ − BA‖²."""
    tail: Tensor | None = None
    """The least squared error of each rank from 0 on, where it is known."""

    @property
    def relative(self) -> float:
        """‖δ − BA‖ / ‖δ‖."""
        return _relative(self.squared_error, self.square)


def total_error(errors: Sequence[ModuleError]) -> float:
    """‖δ − δ̂‖ / ‖δ‖ over all modules together; whole copies miss nothing and are not counted."""
    return _relative(sum(one.squared_error for one in errors), sum(one.square for one in errors))


def rank_for(errors: Sequence[ModuleError], most: float) -> tuple[int, bool] | None:
    """A greater rank at which the total error would be at most `most`, the least that is known to do, and whether that is sure.

    Where a module's own errors are not known, one that is within `most` already is taken to gain nothing, and another to lose
    as its kind does in another layer: an estimate. None if no rank is enough.
    """
    samples = {kind_of(one.module): one for one in errors if one.tail is not None and one.square}
    allowed = most**2 * sum(one.square for one in errors)

    def missed(rank: int) -> float:
        return sum(
            one.squared_error
            if one.tail is None and one.relative <= most
            else _missed(one, samples.get(kind_of(one.module)), rank)
            for one in errors
        )

    low = max(one.rank for one in errors)
    high = max((len(one.tail) - 1 for one in samples.values() if one.tail is not None), default=0)
    if high <= low or missed(high) > allowed:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if missed(middle) <= allowed else (middle, high)
    return high, all(one.tail is not None or one.relative <= most for one in errors)


def as_json(errors: Sequence[ModuleError]) -> dict[str, Any]:
    """Rank and relative error per module and the total, for a JSON file."""
    modules = {one.module: {"rank": one.rank, "relative_error": one.relative} for one in errors}
    return {"total_relative_error": total_error(errors), "modules": modules}


def error_table(errors: Sequence[ModuleError]) -> Table:
    """The errors for `rich` to print at 80 columns: a row for each kind of module, whatever the number of layers."""
    table = Table(title="What the adapter misses: ‖δ − BA‖ / ‖δ‖", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("Module", overflow="fold")
    for heading in ("Layers", "Rank", "Error", "Worst", "in layer"):
        table.add_column(heading, justify="right", no_wrap=True)
    kinds: dict[str, list[ModuleError]] = defaultdict(list)
    for one in errors:
        kinds[kind_of(one.module)].append(one)
    for kind, ones in kinds.items():
        worst = max(ones, key=lambda one: one.relative)
        ranks = sorted({one.rank for one in ones})
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
        name = kind.partition(".*.")[2] or kind.rpartition(".")[2]
        where = _layer_number(kind, worst.module) if worst.relative else ""
        table.add_row(Text(name), str(len(ones)), rank, form(total_error(ones)), form(worst.relative), where)
    table.add_section()
    table.add_row("in total", str(len(errors)), "", form(total_error(errors)), "", "")
    return table


def form(error: float) -> str:
    """An error in four digits, or as a power of ten."""
    return "0" if error == 0 else f"{error:.1e}" if error < 1e-3 else f"{error:.4f}"


def _missed(one: ModuleError, sample: ModuleError | None, rank: int) -> float:
    known = one if one.tail is not None else sample
    if known is None or known.tail is None:
        return one.squared_error
    missed = float(known.tail[min(rank, len(known.tail) - 1)])
    return missed if known is one else min(missed * one.square / known.square, one.squared_error)


def _relative(squared_error: float, square: float) -> float:
    return math.sqrt(squared_error / square) if square else 0.0


def _layer_number(kind: str, module: str) -> str:
    """The layer of a module, of which `kind` is the name with a star for it."""
    start = kind.index("*") if "*" in kind else len(module)
    return module[start:].partition(".")[0]
