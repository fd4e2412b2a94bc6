"""What a fused adapter misses of the fused delta: per module and in total, and what rank would miss less."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paft_plugin.fusion.adapter.parts import kind_of
from paft_plugin.tables import Cell, Column, Row, Table


@dataclass(frozen=True)
class ModuleError:
    """What one module of the adapter misses of the fused delta."""

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


def error_table(errors: Sequence[ModuleError]) -> Table:
    """What the adapter misses, ‖δ − BA‖ / ‖δ‖: a row for each kind of module, whatever the number of layers, and the total."""
    kinds: dict[str, list[ModuleError]] = defaultdict(list)
    for one in errors:
        kinds[kind_of(one.module)].append(one)
    rows = [_row(kind, ones, ends_section=kind == list(kinds)[-1]) for kind, ones in kinds.items()]
    total = ("in total", str(len(errors)), "", form(total_error(errors)), "", "")
    headings = ("Layers", "Rank", "Error", "Worst", "in layer")
    columns = [Column("Module", is_number=False), *map(Column, headings)]
    return Table(columns, [*rows, Row(list(map(Cell, total)))])


def _row(kind: str, errors: Sequence[ModuleError], ends_section: bool) -> Row:
    worst = max(errors, key=lambda one: one.relative)
    ranks = sorted({one.rank for one in errors})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
    name = kind.partition(".*.")[2] or kind.rpartition(".")[2]
    where = _layer_number(kind, worst.module) if worst.relative else ""
    cells = (name, str(len(errors)), rank, form(total_error(errors)), form(worst.relative), where)
    return Row(list(map(Cell, cells)), ends_section=ends_section)


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
    return module[kind.index("*") :].partition(".")[0] if "*" in kind else ""
