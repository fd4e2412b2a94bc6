"""Every statistic agrees with another way to compute it: by hand, by statsmodels, by enumeration, or by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from paft_plugin.evaluation.statistics import (
    MeanChange,
    Values,
    calibration_error,
    change_of_mean,
    change_of_share,
    clusters,
    holm,
    interval_of_score,
    share_interval,
    unpaired_change,
    wilson,
)


def shares(won: int, lost: int, items: int) -> tuple[Values, Values]:
    """Two arms of which the second has `won` items right that the first has wrong, and the other way `lost`."""
    before, after = np.zeros(items), np.zeros(items)
    after[:won] = 1
    before[won : won + lost] = 1
    return before, after


def change(won: int, lost: int, items: int) -> MeanChange:
    return change_of_share(*shares(won, lost, items))


@pytest.mark.parametrize(("right", "items"), [(0, 20), (20, 20), (7, 64), (199, 200)])
def test_wilsons_interval(right: int, items: int) -> None:
    assert wilson(right, items) == pytest.approx(proportion_confint(right, items, method="wilson"), abs=1e-12)
    values = np.array([1.0] * right + [0.0] * (items - right))
    assert share_interval(values) == wilson(right, items)


def test_an_interval_of_a_score_without_items() -> None:
    assert interval_of_score(1.0, 0.0, 100) == wilson(100, 100)
    assert interval_of_score(0.5, None, 100) == wilson(50, 100)
    assert interval_of_score(0.5, math.sqrt(0.25 / 99), 100) == wilson(50, 100)
    assert interval_of_score(0.5, 0.02, 100) == pytest.approx((0.5 - 1.959964 * 0.02, 0.5 + 1.959964 * 0.02))
    assert interval_of_score(7.5, None, 100) is None


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (6, 0), (9, 2), (3, 14), (30, 28)])
def test_mcnemars_exact_test_is_that_of_statsmodels_and_of_all_ways_to_fall(won: int, lost: int) -> None:
    found = change(won, lost, 200)
    assert found.method == "exact McNemar"
    assert found.p == pytest.approx(mcnemar([[0, won], [lost, 0]], exact=True).pvalue)
    if won + lost <= 11:
        ways = [sum(coins) for coins in itertools.product((0, 1), repeat=won + lost)]
        apart = abs(won - lost)
        assert found.p == pytest.approx(np.mean([abs(2 * heads - won - lost) >= apart for heads in ways]))


def test_an_interval_of_shares_is_tangos() -> None:
    """Published: Fagerland, Lydersen and Laake (2014), 21 children before and after a transplant: 1 against 7."""
    found = change(1, 7, 21)
    assert found.value == pytest.approx(-0.286, abs=5e-4)
    assert found.interval[0] == pytest.approx(-0.517, abs=5e-4)
    assert -0.026 < 0 < found.interval[1]  # widened from Tango's: the exact test finds nothing
    assert found.p == pytest.approx(0.0703125)
    # Far from the exact test's bound it is Tango's alone: the likelihood maximised and the score's root found by hand.
    won, lost, items = 12, 2, 50
    found = change(won, lost, items)

    def score(difference: float) -> float:
        def likelihood(lost_share: float) -> float:
            same = 1 - 2 * lost_share - difference
            shares = (lost_share + difference, lost_share, same)
            counts = (won, lost, items - won - lost)
            return sum(count * math.log(max(share, 1e-300)) for count, share in zip(counts, shares, strict=True))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        found = optimize.minimize_scalar(lambda share: -likelihood(share), bounds=bounds, options={"xatol": 1e-12})
        best = found.x
        return (won - lost - items * difference) / math.sqrt(items * (2 * best + difference - difference**2))

    high = optimize.brentq(lambda difference: score(difference) + stats.norm.ppf(0.975), 0.21, 0.9)
    assert found.interval[1] == pytest.approx(high, abs=1e-5)


@pytest.mark.parametrize("items", [20, 200])
def test_an_interval_without_zero_is_a_small_p(items: int) -> None:
    for changed in range(1, 18):
        for won in range(changed + 1):
            found = change(won, changed - won, items)
            low, high = found.interval
            assert (found.p <= 0.05) == (low > 0 or high < 0), (won, changed)
            assert low <= found.inner[0] <= found.value <= found.inner[1] <= high
            turned = change(changed - won, won, items)
            assert turned.interval == pytest.approx((-high, -low))


def test_even_if_nothing_changed_a_share_is_not_certain() -> None:
    """z² / (n + z²) is Tango's own end; 2 points are excluded from 133 items on."""
    z = stats.norm.ppf(0.975)
    assert change(0, 0, 200).interval[1] == pytest.approx(z**2 / (200 + z**2))
    assert [change(0, 0, items).is_within(0.02) for items in (132, 133)] == [False, True]


def test_paired_t_and_its_equivalence_are_those_of_scipy_and_statsmodels() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 40))
    found = change_of_mean(before, after)
    reference = stats.ttest_rel(after, before)
    assert found.method == "paired t"
    assert found.p == pytest.approx(reference.pvalue)
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.95)))
    for margin in (0.1, 0.3, 0.5, 1.0):
        assert found.is_within(margin) == (ttost_paired(after, before, -margin, margin)[0] < 0.05)


def test_skewed_changes_are_bootstrapped_the_same_each_time() -> None:
    changes = np.random.default_rng(3).lognormal(size=60) - 1
    found = change_of_mean(np.zeros(60), changes)
    assert found.method == "bootstrap t"
    assert found == change_of_mean(np.zeros(60), changes)
    low, high = found.interval
    assert (found.p <= 0.05) == (not low <= 0 <= high)
    # Drawn again, item by item:
    generator, spread = np.random.default_rng(7), changes.std(ddof=1) / math.sqrt(60)
    drawn = changes[generator.integers(60, size=(20_000, 60))]
    ratios = (drawn.mean(1) - changes.mean()) / (drawn.std(1, ddof=1) / math.sqrt(60))
    ends = changes.mean() - np.quantile(ratios, [0.975, 0.025]) * spread
    assert found.interval == pytest.approx(tuple(ends), rel=0.05)
    # Where most draws are of one value, there is nothing to draw from:
    single = np.zeros(60)
    single[0] = 1.5
    assert change_of_mean(np.zeros(60), single).method == "paired t"


Draw = Callable[[np.random.Generator], tuple[Values, Values, tuple[str, ...]]]


def _shares(generator: np.random.Generator) -> tuple[Values, Values, tuple[str, ...]]:
    kinds = generator.choice(4, size=100, p=[0.5, 0.12, 0.08, 0.3])
    return np.isin(kinds, (0, 2)).astype(float), np.isin(kinds, (0, 1)).astype(float), ()


def _normal(generator: np.random.Generator) -> tuple[Values, Values, tuple[str, ...]]:
    return np.zeros(30), generator.normal(0.04, 1, size=30), ()


def _skewed(generator: np.random.Generator) -> tuple[Values, Values, tuple[str, ...]]:
    return np.zeros(50), generator.lognormal(0, 1, size=50) - math.exp(0.5) + 0.04, ()


def _in_documents(generator: np.random.Generator) -> tuple[Values, Values, tuple[str, ...]]:
    shared = np.repeat(generator.normal(size=30), 5)
    sources = tuple(f"document {place // 5}" for place in range(150))
    return np.zeros(150), 0.04 + shared + generator.normal(size=150), sources


@pytest.mark.parametrize("draw", [_shares, _normal, _skewed, _in_documents])
def test_95_of_100_intervals_hold_the_true_difference(draw: Draw) -> None:
    generator = np.random.default_rng(11)
    how = change_of_share if draw is _shares else change_of_mean
    intervals = [how(*draw(generator)).interval for _ in range(250)]
    covered = np.mean([low <= 0.04 <= high for low, high in intervals])
    assert 0.925 <= covered <= 0.99


def test_a_share_of_which_all_items_of_all_sources_change_alike_stays_one() -> None:
    """Sources are what is counted, not their items: a change of ten times one is none."""
    sources = [f"document {place // 10}" for place in range(100)]
    found = change_of_share(np.zeros(100), np.ones(100), sources)
    assert found == change_of_share(np.zeros(10), np.ones(10))
    assert found.value == 1


def test_clusters_are_sources_of_several_items_but_not_the_parts_of_a_data_set() -> None:
    assert clusters([]) is None
    assert clusters(["data.jsonl"] * 50) is None
    assert clusters([f"part {place % 3}" for place in range(60)]) is None
    assert clusters([f"row {place}" for place in range(60)]) is None
    assert clusters([None] * 60) is None
    found = clusters([None] * 2 + [f"document {place // 4}" for place in range(58)])
    assert found is not None
    assert len(set(found.tolist())) == 2 + 15


def test_clusters_make_the_error_of_statsmodels() -> None:
    generator = np.random.default_rng(5)
    sources = [f"document {place // 6}" for place in range(120)]
    changes = generator.normal(size=120) + np.repeat(generator.normal(size=20), 6)
    found = change_of_mean(np.zeros(120), changes, sources)
    groups = np.arange(120) // 6
    fit = OLS(changes, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": groups, "df_correction": True})
    spread = (found.interval[1] - found.value) / stats.t.ppf(0.975, 19)
    # statsmodels multiplies by (n - 1) / (n - k) as well, which is 1 for a mean
    assert spread == pytest.approx(float(fit.bse[0]))
    assert found.method == "cluster-robust t"
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / spread, 19))
    alone = change_of_mean(np.zeros(120), changes)
    assert np.ptp(found.interval) > 1.5 * np.ptp(alone.interval)
    # Without any spread between them, right and wrong are as sure as one item of each cluster.
    same = change_of_share(np.zeros(120), np.zeros(120), sources)
    assert same.interval == change(0, 0, 20).interval


def test_holms_correction_is_that_of_statsmodels_and_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    values = list(np.random.default_rng(2).uniform(size=12) ** 3)
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_an_unpaired_difference_is_that_of_two_normal_errors() -> None:
    found = unpaired_change(0.1, 0.04, 50)
    assert found.p == pytest.approx(2 * stats.norm.sf(2.5))
    assert found.interval == pytest.approx((0.1 - 1.959964 * 0.04, 0.1 + 1.959964 * 0.04))
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * 0.04)


@pytest.mark.parametrize(("items", "changed"), [(100, 0.2), (400, 0.1), (60, 0.3)])
def test_what_is_called_detectable_is_shown_in_eight_of_ten(items: int, changed: float) -> None:
    """The power of McNemar's exact test, summed over all that can happen."""
    expected = round(changed * items)
    apart = change(expected // 2, expected - expected // 2, items).detectable
    total = max(changed, apart)
    heads = (total + apart) / (2 * total)  # of an item that changes, the probability that it is won
    power = 0.0
    for count in range(1, items + 1):
        won = np.arange(count + 1)
        shown = 2 * np.minimum(stats.binom.cdf(won, count, 0.5), stats.binom.sf(won - 1, count, 0.5)) <= 0.05
        power += stats.binom.pmf(count, items, total) * stats.binom.pmf(won, count, heads)[shown].sum()
    assert 0.7 <= power <= 0.9


def test_a_mean_is_detectable_as_often() -> None:
    generator = np.random.default_rng(4)
    apart = change_of_mean(np.zeros(40), generator.normal(size=40)).detectable
    samples = generator.normal(apart, 1, size=(2000, 40))
    assert np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05) == pytest.approx(0.8, abs=0.1)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 1.0])
    right = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    # two bins: 0.9 to 1.0 with a mean of 0.9667 and 2 of 3 right, 0.5 to 0.6 with 0.55 and 2 of 2
    assert calibration_error(confidence, right) == pytest.approx(3 / 5 * 0.3 + 2 / 5 * 0.45)
    perfect = np.repeat([0.25, 0.75], 4)
    assert calibration_error(perfect, np.array([1, 0, 0, 0, 1, 1, 1, 0.0])) == pytest.approx(0)
