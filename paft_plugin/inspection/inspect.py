"""Inspect deltas of one base model: what to measure (`Settings`), opening and checking them, and `inspect_deltas` itself.

A tensor is worked on by one thread, for all deltas that change it. The first pass counts each delta and compares each pair, and
counts closely where TIES will probably trim; the second one elects signs, of each pair and among all. (A delta whose edges were
guessed wrong is read once more in between.) Memory is that of a few blocks and histograms for each thread, whatever the model.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paft_plugin.deltas.belongs import check_belongs
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.measures import DECADES
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import raise_if_any, some
from paft_plugin.inspection import kernels
from paft_plugin.inspection.elections import ElectionTally, electors
from paft_plugin.inspection.inspected import Figures, Groups, InspectedDelta, InspectedPair, Inspection, place_of
from paft_plugin.inspection.measures import Elections, Interference, Measures, Rank, Subspaces
from paft_plugin.inspection.pairs import PairTally, Trim, find_trim, likely_edges
from paft_plugin.inspection.rank import compare_spaces, estimated_rank, rank_from_factors
from paft_plugin.inspection.stream import ReadAhead, changes
from paft_plugin.inspection.tally import Counting, StoredTally

THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3)
"""1e-5 is that of arXiv 2505.11711; our own choice are the others around it."""
DENSITIES = (0.1, 0.2, 0.5, 1.0)
"""Our own choice; mergekit's TIES recipes mostly have 0.2 or 0.5."""
MOST_THREADS = 8
"""More would only wait for memory, and each holds files mapped."""
UNDER_WAY = 48
"""Tensors that are begun, or wait for an earlier one; each keeps a histogram of 260 kB for each delta."""

Pair = tuple[str, str]
OnEntries = Callable[[int, int], None]
"""Called with the entries done since the last call, and all that there are."""


@dataclass(frozen=True)
class Settings:
    """What to measure; thresholds and densities are checked and put in ascending order.

    Raises:
        PaftError: a threshold that is negative or no number, a density outside of (0, 1]; all at once.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    densities: tuple[float, ...] = DENSITIES
    pairs: bool = True
    """Whether to compare every two deltas."""
    fused: tuple[str, ...] = ()
    """The deltas that are fused together, and so elect signs; of no names all but dense twins."""

    def __post_init__(self) -> None:
        thresholds = [each for each in self.thresholds if not (math.isfinite(each) and each >= 0)]
        densities = [each for each in self.densities if not 0 < each <= 1]
        problems = [f"threshold {each}: not a number ≥ 0. Give one like 1e-5." for each in thresholds]
        raise_if_any(problems + [f"density {each}: not a share in (0, 1]. Give one like 0.2." for each in densities])
        object.__setattr__(self, "thresholds", tuple(sorted(set(map(float, self.thresholds)))))
        # Before trimming is what every other density is compared with.
        object.__setattr__(self, "densities", tuple(sorted({*map(float, self.densities), 1.0})))


def problems_of(base: Path, branches: Mapping[str, Path]) -> list[str]:
    """All that keeps branches from being deltas on `base`; reads headers only, as far as `check_belongs` does."""
    return list(dict.fromkeys(each for branch in branches.values() for each in check_belongs(base, branch)))


def _open_deltas(base: Path, branches: Mapping[str, Path]) -> dict[str, Delta]:
    """Name → delta, in the order given; refuses what has nothing to measure. Reads headers only, as `problems_of` does."""
    raise_if_any(problems_of(base, branches))
    store = open_model(base)
    deltas = {name: delta_of(store, branch) for name, branch in branches.items()}
    raise_if_any(
        [
            f"{delta.branch}: its delta has nothing to measure. Check that the branch was trained."
            for delta in deltas.values()
            if not any(0 not in store.shape(each) for each in delta.names)
        ]
    )
    return deltas


@dataclass
class TensorResult:
    """All that was counted of one tensor."""

    name: str
    shape: tuple[int, ...]
    tallies: dict[str, StoredTally] = field(default_factory=dict)
    """By delta."""
    ranks: dict[str, Rank | None] = field(default_factory=dict)
    pairs: dict[Pair, PairTally] = field(default_factory=dict)
    subspaces: dict[Pair, Subspaces | None] = field(default_factory=dict)
    election: ElectionTally | None = None
    """Among all deltas of the inspection, if they are enough."""


def inspect_deltas(
    base: Path,
    branches: Mapping[str, Path],
    settings: Settings | None = None,
    progress: OnEntries = lambda _done, _of: None,
) -> Inspection:
    """Measure the deltas of `branches` (name → folder) on the base model's folder.

    Raises:
        PaftError: everything that is wrong with the folders, with what they hold, or with the settings.
    """
    settings = settings or Settings()
    deltas = _open_deltas(base, branches)
    entries = sum(math.prod(delta.base.shape(name)) for delta in deltas.values() for name in delta.names)
    everything = _Everything(deltas, settings)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _one_thread_of_torch(), ThreadPoolExecutor(min(cores, MOST_THREADS)) as pool:
        for result in _in_order(pool, deltas, settings):
            everything.add(result)
            progress(sum(tally.entries for tally in result.tallies.values()), entries)
    return everything.inspection(base)


def _by_layer(name: str) -> tuple[int, str]:
    """Sorts names by layer, those without one first."""
    layer, _ = place_of(name)
    return -1 if layer is None else layer, name


def _in_order(pool: ThreadPoolExecutor, deltas: Mapping[str, Delta], settings: Settings) -> Iterator[TensorResult]:
    """Each tensor's sums in the order of layers, with some tensors under way at any time."""
    changeable = {which: set(delta.names) for which, delta in deltas.items()}
    names = sorted(set().union(*changeable.values()), key=_by_layer)

    def work(name: str) -> TensorResult:
        ahead.release(name)
        return inspect_tensor(name, changed(name), settings, election_of(deltas, settings))

    def changed(name: str) -> dict[str, Delta]:
        return {which: delta for which, delta in deltas.items() if name in changeable[which]}

    under_way: deque[Future[TensorResult]] = deque()
    with ReadAhead(names, changed) as ahead:
        for name in names:
            under_way.append(pool.submit(work, name))
            # An embedding takes as long as many others: meanwhile the other threads go on.
            if len(under_way) > UNDER_WAY:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def inspect_tensor(
    name: str, deltas: Mapping[str, Delta], settings: Settings, election: ElectionTally | None = None
) -> TensorResult:
    """Measure one tensor of every delta that changes it, of every pair of these, and the election among all in `election`."""
    result = TensorResult(name, next(iter(deltas.values())).base.shape(name), election=election)
    pairs = list(itertools.combinations(deltas, 2)) if settings.pairs else []
    result.pairs = {pair: PairTally(settings.thresholds, settings.densities) for pair in pairs}
    counts = {
        which: Counting(
            delta, name, settings.thresholds, likely_edges(delta, name, settings.densities) if pairs or election else ()
        )
        for which, delta in deltas.items()
    }
    for before, block in changes(name, list(deltas.values())):
        base_squares = kernels.squared(before.reshape(-1))
        by_delta = dict(zip(deltas, block, strict=True))
        for which, change in by_delta.items():
            counts[which].take(before, change, base_squares)
        for (one, other), sums in result.pairs.items():
            sums.compare(by_delta[one], by_delta[other])
    factors = {which: delta.factors(name) for which, delta in deltas.items()}
    for which, delta in deltas.items():
        result.tallies[which], product = counts[which].finished(), factors[which]
        result.ranks[which] = (
            rank_from_factors(*product) if product else estimated_rank(delta, name, counts[which].by_row)
        )
    if pairs or election:
        trims = {
            which: find_trim(delta, name, result.tallies[which], settings.densities, counts[which].within)
            for which, delta in deltas.items()
        }
        _elect(result, deltas, trims)
    for one, other in pairs:
        ours, theirs = factors[one], factors[other]
        result.subspaces[one, other] = compare_spaces(ours, theirs) if ours and theirs else None
    return result


def _elect(result: TensorResult, deltas: Mapping[str, Delta], trims: Mapping[str, Trim]) -> None:
    """The second pass over a tensor: what is left of each two deltas, and of all together, once each is trimmed."""
    for (one, other), sums in result.pairs.items():
        sums.trim((result.tallies[one], result.tallies[other]), (trims[one], trims[other]))
    for _, block in changes(result.name, list(deltas.values())):
        by_delta = dict(zip(deltas, block, strict=True))
        for (one, other), sums in result.pairs.items():
            sums.elect(by_delta[one], by_delta[other], (trims[one], trims[other]))
        if result.election is not None:
            result.election.elect(
                {which: by_delta[which] for which in result.election.names if which in by_delta}, trims
            )


def election_of(deltas: Collection[str], settings: Settings) -> ElectionTally | None:
    """Nothing yet of the election among all deltas; None where there is none to be held."""
    names = electors(deltas, settings.fused) if settings.pairs else ()
    return ElectionTally(names, settings.densities) if names else None


class _Everything:
    """The sums of all tensors, gathered in groups for each delta and each pair."""

    def __init__(self, deltas: Mapping[str, Delta], settings: Settings) -> None:
        self._deltas, self._settings = deltas, settings
        thresholds, densities = settings.thresholds, settings.densities
        self._of_deltas: dict[str, Groups[StoredTally, Measures]] = {
            which: Groups(lambda: StoredTally(thresholds), StoredTally.measures) for which in deltas
        }
        self._of_pairs: dict[Pair, Groups[PairTally, Interference]] = {
            pair: Groups(lambda: PairTally(thresholds, densities), PairTally.interference)
            for pair in (itertools.combinations(deltas, 2) if settings.pairs else ())
        }
        self._of_all: Groups[ElectionTally, Elections] = Groups(
            lambda: ElectionTally(electors(deltas, settings.fused), densities), ElectionTally.elections
        )
        self._diverged: dict[str, list[str]] = {}
        self._broken: dict[str, None] = {}
        """Tensors of the base that are not finite themselves."""

    def add(self, result: TensorResult) -> None:
        """Take in the next tensor, in the order of layers."""
        for which, tally in result.tallies.items():
            if not math.isfinite(tally.base_squares):
                self._broken[result.name] = None
            elif not tally.is_finite:
                self._diverged.setdefault(which, []).append(result.name)
            elif tally.entries:
                self._of_deltas[which].add(result.name, result.shape, tally, tally.measures(result.ranks[which]))
        for pair, sums in result.pairs.items():
            if sums.entries and not (self._diverged or self._broken):
                figures = sums.interference(result.subspaces[pair])
                self._of_pairs[pair].add(result.name, result.shape, sums, figures)
        if result.election is not None and result.election.entries and not (self._diverged or self._broken):
            self._of_all.add(result.name, result.shape, result.election, result.election.elections())

    def inspection(self, base: Path) -> Inspection:
        """All figures; raises `PaftError` if a delta or the base is not finite."""
        of_base = (
            f"{base}: NaN or infinity in {some(list(self._broken))}: nothing can be measured there. Download it again."
        )
        of_deltas = [
            f"{self._deltas[which].branch}: NaN or infinity in its delta of {some(names)}: its training diverged. "
            "Retrain with a lower learning rate."
            for which, names in self._diverged.items()
        ]
        raise_if_any([*([of_base] if self._broken else []), *of_deltas])
        return Inspection(
            base=str(base.absolute()),
            thresholds=self._settings.thresholds,
            densities=self._settings.densities,
            deltas=tuple(self._inspected(which, delta) for which, delta in self._deltas.items()),
            pairs=tuple(
                InspectedPair(*pair, groups.finished()) for pair, groups in self._of_pairs.items() if groups.tensors
            ),
            elections=self._of_all.finished() if self._of_all.tensors else None,
        )

    def _inspected(self, which: str, delta: Delta) -> InspectedDelta:
        groups = self._of_deltas[which]
        figures: Figures[Measures] = groups.finished()
        histogram = groups.total.magnitudes.histogram(DECADES, groups.total.zeros)
        return InspectedDelta(which, delta.kind, str(delta.branch.absolute()), histogram, figures)


@contextmanager
def _one_thread_of_torch() -> Iterator[None]:
    """Each of our threads has a core of its own: within them torch must not start more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
