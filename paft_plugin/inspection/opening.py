"""Open the deltas to inspect, with everything that is wrong with them said at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from paft_plugin.deltas import Delta, check_belongs
from paft_plugin.deltas.belongs import branch_problems
from paft_plugin.deltas.delta import delta_of
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import PaftError, raise_if_any, some


def problems_of(base: Path, branches: Mapping[str, Path]) -> list[str]:
    """All that keeps branches from being deltas on `base`.

    Reads headers only, unless an adapter names another folder as its base: then both are compared.

    Returns:
        Problems, each with what, where and what to do.
    """
    try:
        store = open_model(base)
    except PaftError:
        return list(dict.fromkeys(each for branch in branches.values() for each in check_belongs(base, branch)))
    return list(dict.fromkeys(each for branch in branches.values() for each in branch_problems(store, branch)))


def open_deltas(base: Path, branches: Mapping[str, Path], names: Collection[str] | None = None) -> dict[str, Delta]:
    """Name → delta, in the order given; reads headers only, as far as `problems_of` does.

    Raises:
        PaftError: a folder is missing, or a branch does not belong to the base; with `names`, a delta that has none of them.
    """
    raise_if_any(problems_of(base, branches))
    store = open_model(base)
    deltas = {name: delta_of(store, branch) for name, branch in branches.items()}
    raise_if_any(
        [
            f"{delta.branch}: its delta has nothing to measure. Check that the branch was trained."
            for delta in deltas.values()
            if not any(0 not in store.shape(each) for each in delta.names if names is None or each in names)
        ]
    )
    return deltas


def diverged(deltas: Mapping[str, Delta], broken: Mapping[str, list[str]]) -> None:
    """Refuse deltas that hold NaN or infinity.

    Args:
        deltas: all of them.
        broken: name of a delta → its tensors that do.

    Raises:
        PaftError: there are any.
    """
    raise_if_any(
        [
            f"{deltas[which].branch}: NaN or infinity in its delta of {some(names)}: its training diverged. "
            "Retrain with a lower learning rate."
            for which, names in broken.items()
        ]
    )
