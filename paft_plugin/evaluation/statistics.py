"""What can be said of means over items: intervals, paired differences, equivalence, and how small a difference N items show.

Every arm answers the same items, so a difference is judged by how each item changed: right and wrong by McNemar's exact test,
other values by Student's t, or by a bootstrap of it where the changes are skewed. Items that share a source count as clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LEVEL = 0.95
"""Of every interval; a difference counts whose p is at most 1 - LEVEL."""
INNER = 0.90
"""Two one-sided tests at 5 % each (TOST) are an interval of 90 % that lies within the margin."""
POWER = 0.8
"""How probably a difference of `detectable` would be shown."""
LEAST_ITEMS = 6
"""Fewer show nothing: of five items that all turn from wrong to right, McNemar's exact p is 0.06."""
LEAST_CLUSTERS = 10
"""Fewer sources are the parts that a data set was put together of, not draws from anything."""
SKEWED, BOOTSTRAPPED = 1.0, range(20, 1001)
"""Skewness of changes from which t's own interval falls short, and the numbers of items to which the bootstrap is put."""
DRAWS, SEED = 10_000, 0
LEAST_P = 1e-12
"""Smaller ones over seeds and items are not told apart: the normal approximation says nothing so far out."""
Values = NDArray[np.float64]
Interval = tuple[float, float]
Method = Literal["exact McNemar", "paired t", "bootstrap t", "cluster-robust t", "unpaired", "seeds and items"]


@dataclass(frozen=True)
class MeanChange:
    """How a mean changes from one arm to another."""

    value: float
    interval: Interval
    """Of 95 %; without zero exactly where `p` is at most 0.05."""
    inner: Interval
    """Of 90 %, for equivalence."""
    p: float
    detectable: float
    """The smallest true difference that so many items would show, in 8 of 10 repetitions."""
    items: int
    method: Method

    def is_within(self, margin: float) -> bool:
        """Whether both one-sided tests reject a difference as large as `margin`."""
        return -margin < self.inner[0] and self.inner[1] < margin


def wilson(right: float, items: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share: neither 0 nor 1 is ever certain."""
    z = float(stats.norm.ppf((1 + level) / 2))
    share, spread = right / items, z * z / items
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / items + spread / (4 * items))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_interval(values: Values, sources: Sequence[str | None] = ()) -> Interval:
    """The 95 % interval of the share of items that are right, 1 and not 0: Wilson's, or of clusters t's."""
    groups = clusters(sources)
    if groups is not None and _standard_error(values, groups):
        return mean_interval(values, sources)
    return wilson(float(values.mean()) * _count(values, groups), _count(values, groups))


def mean_interval(values: Values, sources: Sequence[str | None] = ()) -> Interval:
    """The 95 % interval of a mean over items."""
    groups = clusters(sources)
    return _around(float(values.mean()), _t(LEVEL, _count(values, groups)) * _standard_error(values, groups))


def interval_of_score(score: float, stderr: float | None, items: int) -> Interval | None:
    """The 95 % interval of a score of which no items are known; None if nothing is known of its spread.

    A standard error that is that of a share, or missing or zero though it may be one, means Wilson's interval.
    """
    if items and 0 <= score <= 1:
        of_share = math.sqrt(score * (1 - score) / max(items - 1, 1))
        if not stderr or math.isclose(stderr, of_share, rel_tol=1e-3):
            return wilson(score * items, items)
    return None if stderr is None else _around(score, _z(LEVEL) * stderr)


def change_of_share(before: Values, after: Values, sources: Sequence[str | None] = ()) -> MeanChange:
    """How a share of right items changes, of the same items in the same order; `sources` as in `clusters`."""
    changes, groups = after - before, clusters(sources)
    if groups is not None and _standard_error(changes, groups):
        return change_of_mean(before, after, sources)
    won, lost, count = int((changes > 0).sum()), int((changes < 0).sum()), _count(changes, groups)
    alike = count / len(changes)  # below 1 where items share sources, each of which has changed as much as any other
    return _mcnemar(round(won * alike), round(lost * alike), count)


def change_of_mean(before: Values, after: Values, sources: Sequence[str | None] = ()) -> MeanChange:
    """How a mean changes, of the same items in the same order; `sources` as in `clusters`."""
    changes, groups = after - before, clusters(sources)
    if groups is None and len(changes) in BOOTSTRAPPED and abs(_skewness(changes)) > SKEWED:
        bootstrapped = _bootstrap(changes)
        if bootstrapped is not None:
            return bootstrapped
    found = _by_t(float(changes.mean()), _standard_error(changes, groups), _count(changes, groups), len(changes))
    return replace(found, method="paired t" if groups is None else "cluster-robust t")


def unpaired_change(value: float, stderr: float, items: int) -> MeanChange:
    """A difference of two arms of which only the standard errors are known, `stderr` being that of the difference."""
    p = float(2 * stats.norm.sf(abs(value) / stderr)) if stderr else float(value == 0)
    outer, inner = (_around(value, _z(level) * stderr) for level in (LEVEL, INNER))
    return MeanChange(value, outer, inner, p, (_z(LEVEL) + _z(2 * POWER - 1)) * stderr, items, "unpaired")


def clusters(sources: Sequence[str | None]) -> NDArray[np.intp] | None:
    """Which cluster each item belongs to; None where items count singly.

    Items of one source are a cluster, one without a source is its own. They do not count if every item has its own, or if
    there are fewer than ten: a single data file, or three that were put together, says nothing of what items share.
    """
    named = [source if source is not None else f"\0{place}" for place, source in enumerate(sources)]
    known = sorted(set(named))
    if not LEAST_CLUSTERS <= len(known) < len(named):
        return None
    places = {source: place for place, source in enumerate(known)}
    return np.array([places[source] for source in named])


@dataclass(frozen=True)
class SeedPart:
    """What one seed came to on the items of one measure, in a weighted sum of several."""

    values: Values
    units: NDArray[np.int64]
    """What counts singly: of items with the same number none tells anything new, whichever seed or measure they are of."""
    weight: float = 1.0


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds and items: x = μ + seed + item + rest, where seeds may have items in common.

    The half of an interval is √(t²·`of_seeds` + t²·`of_items`), each part with the quantile of its own degrees of freedom: of
    seeds, and of items. Its coverage with few seeds, with few items and with items that only some seeds share: `LOG.md`.
    It is never narrower than with the very same seeds on other items: few seeds may agree by chance.
    """

    value: float
    of_seeds: float
    """The variance of the mean that other seeds would show: that of the seeds' own means, by their number."""
    of_items: float = 0.0
    """What is added to it by seeds having items in common, which others would replace."""
    of_other_items: float = 0.0
    """The variance of the mean that the very same seeds would show on other items."""
    seeds: int = 1
    items: int = 1
    units: int = 2
    """How many items, or clusters of them, count singly: in each seed and measure at least."""
    changed: int | None = None
    """Of a change of right and wrong: how many units changed in any seed. So few cannot show more than a sign test of them."""

    def half(self, level: float = LEVEL) -> float:
        """How far the interval reaches to each side."""
        of_items = _t(level, self.units)
        both = math.hypot(_t(level, self.seeds) * math.sqrt(self.of_seeds), of_items * math.sqrt(self.of_items))
        is_beyond = self.changed is not None and 1 - level < 2.0 ** (1 - self.changed)  # what a sign test can show
        least = abs(self.value) * (1 + 1e-9) if is_beyond else 0.0
        return max(both, of_items * math.sqrt(self.of_other_items), least)

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        return _around(self.value, self.half())

    @property
    def p(self) -> float:
        """Of a mean of zero: 1 less the level of the interval that just reaches it."""
        if not self.half():
            return float(self.value == 0)
        if self.half(1 - LEAST_P) < abs(self.value):
            return LEAST_P
        return float(optimize.brentq(lambda p: self.half(1 - p) - abs(self.value), LEAST_P, 1.0, xtol=1e-15, rtol=1e-9))

    @property
    def change(self) -> MeanChange:
        """The mean as one of changes from one arm to another."""
        inner, detectable = _around(self.value, self.half(INNER)), self.half() + self.half(2 * POWER - 1)
        return MeanChange(self.value, self.interval, inner, self.p, detectable, self.items, "seeds and items")


def mean_of_seeds(means: Sequence[float]) -> SeedMean:
    """The mean of what each of at least two seeds came to, where nothing is known of their items."""
    values = np.array(means)
    return SeedMean(float(values.mean()), _variance(values) / len(values), seeds=len(values))


def mean_of_items(seeds: Sequence[Sequence[SeedPart]]) -> SeedMean:
    """The mean over seeds of the weighted sum of what each came to on the items of its parts, two units a part or more.

    What each unit adds to a seed's mean says how much of that other units would replace; and of two seeds the products of
    what their common units add say how their means vary together.
    """
    means = np.array([sum(part.weight * float(part.values.mean()) for part in parts) for parts in seeds])
    every = [part for parts in seeds for part in parts]
    units, places = np.unique(np.concatenate([part.units for part in every]), return_inverse=True)
    added, start, least_units = np.zeros((len(seeds), len(units))), 0, len(units)
    for row, parts in zip(added, seeds, strict=True):
        for part in parts:
            own = places[start : start + len(part.values)]
            start += len(part.values)
            singly = len(np.unique(own))
            least_units = min(least_units, singly)
            spread = (part.values - part.values.mean()) * math.sqrt(singly / (singly - 1)) / len(part.values)
            row += part.weight * np.bincount(own, weights=spread, minlength=len(units))
    together = added @ added.T
    count = len(seeds)
    least = sum(map(math.sqrt, map(_least_variance, zip(*seeds, strict=True)))) ** 2  # parts may have items in common
    of_other_items = max(float(together.sum()) / count**2, least)
    common = (float(together.sum()) - float(np.trace(together))) / max(count * (count - 1), 1)
    return SeedMean(
        float(means.mean()),
        _variance(means) / count if count > 1 else 0.0,
        max(common, 0.0) if count > 1 else float(together[0, 0]),
        of_other_items,
        count,
        min(len(part.values) for part in every),
        least_units,
    )


def change_of_seeds(seeds: Sequence[Sequence[SeedPart]]) -> MeanChange:
    """How a mean changes, of the items' changes in each seed; the parts as in `mean_of_items`."""
    every, found = [part for parts in seeds for part in parts], mean_of_items(seeds)
    if all(map(_are_shares, every)):
        changed = {unit for part in every for unit in part.units[part.values != 0].tolist()}
        found = replace(found, changed=len(changed))
    return found.change


def _are_shares(part: SeedPart) -> bool:
    """Whether it is of right and wrong, or of changes of that."""
    return bool(np.isin(part.values, (-1.0, 0.0, 1.0)).all())


def _least_variance(parts: Sequence[SeedPart]) -> float:
    """Of the share of right items in all seeds, or its change, as if z² units more were as different as those that differ.

    That no item differs does not mean that none can: the interval then reaches z²/(n + z²), as Wilson's and Tango's do.
    """
    if not all(map(_are_shares, parts)):
        return 0.0
    units, places = np.unique(np.concatenate([part.units for part in parts]), return_inverse=True)
    means = np.bincount(places, weights=np.concatenate([part.values for part in parts])) / np.bincount(places)
    most = min((-1.0, 0.0, 1.0), key=lambda value: float(np.abs(means - value).mean()))
    different, z = (means - most)[means != most], _z(LEVEL)
    reach = float((different**2).mean()) if len(different) else 1.0
    return reach * (parts[0].weight * z / (len(units) + z * z)) ** 2


def _variance(values: Values) -> float:
    return float(values.var(ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: of all that are at most 0.05, the probability that any is by chance is at most 0.05."""
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = greatest
    return adjusted


def calibration_error(confidence: Values, right: Values, bins: int = 10) -> float:
    """Expected calibration error: by how much stated probabilities miss the share that was right, over bins of equal width."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def is_right_or_wrong(values: Values) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def _mcnemar(won: int, lost: int, items: int) -> MeanChange:
    changed = won + lost
    p = float(stats.binomtest(won, changed).pvalue) if changed else 1.0
    outer, inner = (_interval_of_changes(won, lost, items, level) for level in (LEVEL, INNER))
    share = (changed + 1) / (items + 2)  # the rule of succession: that none changed does not mean that none can
    detectable = max(LEAST_ITEMS / items, (_z(LEVEL) + _z(2 * POWER - 1)) * math.sqrt(share / items))
    return MeanChange((won - lost) / items, outer, inner, p, min(1.0, detectable), items, "exact McNemar")


@lru_cache(maxsize=4096)
def _interval_of_changes(won: int, lost: int, items: int, level: float) -> Interval:
    """Tango's score interval (1998) of the difference of two paired shares.

    It is widened to the exact interval given how many items changed, so that it holds zero exactly where McNemar's exact test
    finds nothing.
    """
    low, high = _tango(won, lost, items, level), -_tango(lost, won, items, level)
    if changed := won + lost:
        exact = stats.binomtest(won, changed).proportion_ci(level, method="exact")
        low, high = (bound((end, (2 * share - 1) * changed / items)) for bound, end, share in (
            (min, low, exact.low), (max, high, exact.high)
        ))  # fmt: skip
    return float(low), float(high)


def _tango(won: int, lost: int, items: int, level: float) -> float:
    """The lower end: the difference that the score test rejects just not."""

    def score(difference: float) -> float:
        linear = -won - lost + (2 * items - won + lost) * difference
        root = math.sqrt(max(linear**2 + 8 * items * lost * difference * (1 - difference), 0.0))
        least = (root - linear) / (4 * items)  # the likeliest share of lost items, given the difference
        variance = items * (2 * least + difference * (1 - difference))
        return (won - lost - items * difference) / math.sqrt(max(variance, 1e-300)) - _z(level)

    value = (won - lost) / items
    if value <= -1:
        return -1.0
    return float(optimize.brentq(score, -1 + 1e-12, value - 1e-12)) if score(-1 + 1e-12) > 0 else -1.0


def _bootstrap(changes: Values) -> MeanChange | None:
    """By the bootstrap of t; None where too many draws are all of one value."""
    counts, items = _draws(len(changes)), len(changes)
    value, spread = float(changes.mean()), _standard_error(changes)
    means = counts @ changes / items
    variances = np.maximum(counts @ changes**2 / items - means**2, 0) / (items - 1)
    drawn = np.sqrt(variances)
    is_known = drawn > 1e-9 * spread
    if is_known.mean() < 0.999:
        return None
    ratios = np.sort((means[is_known] - value) / drawn[is_known])
    below, above = (ratios <= value / spread).sum(), (ratios >= value / spread).sum()
    p = min(1.0, 2 * (min(below, above) + 1) / (len(ratios) + 1))

    def interval(level: float) -> Interval:
        ends = np.quantile(ratios, [(1 + level) / 2, (1 - level) / 2])
        return value - float(ends[0]) * spread, value - float(ends[1]) * spread

    by_t = _by_t(value, spread, items, items)
    return replace(by_t, interval=interval(LEVEL), inner=interval(INNER), p=float(p), method="bootstrap t")


@lru_cache(maxsize=4)
def _draws(items: int) -> NDArray[np.float32]:
    """How often each item is in each of 10 000 draws; shape ``[DRAWS, items]``."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(items, np.full(items, 1 / items), size=DRAWS).astype(np.float32)


def _by_t(value: float, spread: float, count: int, items: int) -> MeanChange:
    p = float(2 * stats.t.sf(abs(value) / spread, count - 1)) if spread else float(value == 0)
    outer, inner = (_around(value, _t(level, count) * spread) for level in (LEVEL, INNER))
    return MeanChange(value, outer, inner, p, (_t(LEVEL, count) + _t(2 * POWER - 1, count)) * spread, items, "paired t")


def _standard_error(values: Values, groups: NDArray[np.intp] | None = None) -> float:
    """Of the mean; of clusters the robust one (CR1)."""
    if len(values) < 2:
        return math.inf
    if groups is None:
        return float(values.std(ddof=1) / math.sqrt(len(values)))
    sums = np.bincount(groups, weights=values - values.mean())
    return float(math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values))


def _skewness(values: Values) -> float:
    return float(stats.skew(values)) if np.ptp(values) else 0.0


def _count(values: Values, groups: NDArray[np.intp] | None) -> int:
    """Of what counts singly: items or clusters."""
    return len(values) if groups is None else int(groups.max()) + 1


def _around(value: float, half: float) -> Interval:
    return value - half, value + half


@cache
def _z(level: float) -> float:
    """Standard errors to each side of an interval."""
    return float(stats.norm.ppf((1 + level) / 2))


@lru_cache(maxsize=256)
def _t(level: float, count: int) -> float:
    """The same for a spread that was estimated from so many values."""
    return float(stats.t.ppf((1 + level) / 2, max(count - 1, 1)))
