"""One type for deltas on disk, δ = θ − θ_pre, whatever the branch is stored as."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from paft_plugin.deltas.adapter import Adapter, open_adapter
from paft_plugin.deltas.changes import LowRank, Rows
from paft_plugin.deltas.controls import CONTROL_FILE, ControlFile
from paft_plugin.deltas.fit import fit_adapter, fit_model
from paft_plugin.deltas.store import Slices, TensorStore, is_adapter, open_model
from paft_plugin.errors import raise_if_any
from paft_plugin.files import fingerprint


@dataclass(frozen=True)
class Delta:
    """A branch's delta, one tensor at a time; the base's and the branch's files stay memory-mapped."""

    kind: Literal["adapter", "model"]
    base: TensorStore
    branch: Path
    names: tuple[str, ...]
    """The base tensors that the branch can change, sorted; tied tensors once, under the embedding's name."""
    branch_fingerprint: Callable[[], str]
    """Of the branch's content: tensors, and for an adapter what decides its scale."""
    rows: Callable[[str], Rows]
    """Name → ranges of δ's rows. What holds them keeps the files mapped: drop it when memory matters, and ask again."""
    factors: Callable[[str], tuple[Tensor, Tensor] | None]
    """Name → (L, R) in fp32 with δ = L·R, ``(rows, r)`` and ``(r, columns)``, if an adapter holds δ as such a product."""
    trained: Callable[[str], Slices | None] = lambda _: None
    """Name → ranges of θ in its own dtype, if the branch holds it as a tensor like the base's, so that δ = θ − θ_pre."""
    read_ahead: Callable[[str], None] = lambda _: None
    """Name → asks the system to have the branch's tensor in its cache soon, where `trained` would read it."""
    grown: dict[str, int] = field(default_factory=dict)
    """Tensor → rows that the branch added (a resized vocabulary). They have no base, so they are no part of the delta."""

    def one(self, name: str) -> Tensor:
        """δ of one tensor in fp32, in the base tensor's shape."""
        shape = self.base.shape(name)
        # A scalar has no rows; it is read as one.
        return self.rows(name)(0, shape[0] if shape else 1).reshape(shape)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, δ in fp32) of each."""
        return ((name, self.one(name)) for name in self.names)

    def fingerprint(self) -> str:
        """Of the base's and the branch's content; the same for any path, file time and sharding."""
        return fingerprint([self.kind, self.base.fingerprint, self.branch_fingerprint()])


def open_delta(base: Path, branch: Path) -> Delta:
    """Open the delta of a branch's folder: with an `adapter_config.json` in it, it is an adapter, whatever else lies there.

    Raises:
        PaftError: A folder or file is missing, pickled or corrupt; an adapter's delta is not s·BA; tensors don't fit the base.
    """
    return delta_of(open_model(base), branch)


def delta_of(base: TensorStore, branch: Path) -> Delta:
    """`open_delta` on a base that is open already."""
    return _adapter_delta(base, open_adapter(branch)) if is_adapter(branch) else _model_delta(base, open_model(branch))


def _adapter_delta(base: TensorStore, adapter: Adapter) -> Delta:
    fit = fit_adapter(base, adapter)
    raise_if_any(fit.problems)

    def rows(name: str) -> Rows:
        first, *others = (change.rows(adapter, base, name) for change in fit.changes[name])
        return (
            (lambda start, stop: sum((other(start, stop) for other in others), first(start, stop))) if others else first
        )

    def factors(name: str) -> tuple[Tensor, Tensor] | None:
        if len(fit.changes[name]) != 1 or not isinstance(change := fit.changes[name][0], LowRank):
            return None
        return change.factors(adapter, base, name)

    return Delta(
        "adapter", base, adapter.folder, tuple(fit.names), lambda: adapter.fingerprint, rows, factors, grown=fit.grown
    )


def _model_delta(base: TensorStore, branch: TensorStore) -> Delta:
    fit = fit_model(base, branch)
    raise_if_any(fit.problems)

    def rows(name: str) -> Rows:
        after, before = trained(name) or cut(name), base.slices(name)
        return lambda start, stop: after(start, stop).float() - before(start, stop).float()

    def trained(name: str) -> Slices | None:
        source, place = fit.sources[name]
        return branch.slices(source) if place.is_whole else None

    def cut(name: str) -> Slices:
        source, place = fit.sources[name]
        part = place.cut(branch.tensor(source))
        return lambda start, stop: part[start:stop]

    def read_ahead(name: str) -> None:
        branch.read_ahead(fit.sources[name][0])

    made = ControlFile.read(file) if (file := branch.folder / CONTROL_FILE).is_file() else None
    names = made.tensors if made else tuple(fit.names)
    return Delta(
        "model", base, branch.folder, names, lambda: branch.fingerprint, rows, lambda _: None, trained, read_ahead
    )
