"""Dominance: one delta's norm and its signs decide the merge alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from paft_plugin.deltas.measures import Histogram
from paft_plugin.formats import share, threshold_key
from paft_plugin.inspection.diagnosis.facts import Facts
from paft_plugin.inspection.diagnosis.verdict import (
    RECIPE,
    Check,
    Evidence,
    Excuses,
    Remedy,
    judged,
    of_pair,
    unknown,
)
from paft_plugin.inspection.inspected import InspectedPair, Inspection

NORM_RATIO = 1 / 3
SURVIVAL = 0.75
SIGNATURE = "dominance"


@of_pair
def dominance(facts: Facts, one: str, other: str, excuses: Excuses) -> Check:
    """Look for a delta that decides the merge of a pair alone.

    Decided by two at once: a norm that is far the smaller, and entries of which much is overruled. A healthy sparse delta has a
    small norm, few entries and a small share of the merged delta, and yet nearly all of it survives.
    """
    branches, pair = (one, other), facts.pair(one, other)
    verdict = partial(judged, SIGNATURE, branches)
    if facts.inspection is None or pair is None:
        where = f"{facts.inspection_file}: the pair of {one} and {other} (axolotl paft inspect)"
        return unknown(SIGNATURE, branches, "The two were not inspected as a pair.", [where])
    bare = dict(zip((pair.first, pair.second), map(math.sqrt, pair.figures.total.squares), strict=True))
    if zeros := [name for name in branches if not bare[name]]:
        return unknown(SIGNATURE, branches, f"The delta of {zeros[0]} is zero: there is nothing to dominate.")
    contest = _contest(facts, facts.inspection, pair, _weights(facts, branches, bare), bare)
    weak, strong, kept = contest.weak, contest.strong, contest.kept
    evidence = [*contest.deciding, *_shares(facts, pair, weak)]
    reasons = [item for item in contest.deciding if not item.speaks_for]
    if reasons:
        left, rest = share(kept[weak], 0), share(kept[strong], 0)
        message = f"Neither overrules the other: {left} of {weak} and {rest} of {strong} survive."
        return verdict("clear", message, evidence=evidence, deciding=reasons)
    if excuse := excuses.get(weak):
        message = f"{strong} overrules {weak} because of {excuse} in {weak}. Mend that first."
        return verdict("clear", message, evidence=evidence)
    times = f"{1 / contest.ratio:.3g} times {weak}'s"
    return verdict(
        "found", f"{strong} decides the merge: its delta is {times}, of which {share(kept[weak], 0)} survives.",
        evidence=evidence, deciding=contest.deciding, culprit=strong,
        remedies=_balance(facts, strong, weak, contest.ratio, contest.weight),
    )  # fmt: skip


@dataclass(frozen=True)
class _Contest:
    """How two deltas fare against each other."""

    weak: str
    strong: str
    weight: float
    """Of the stronger one, as in the recipes."""
    ratio: float
    """Norm of the weaker over that of the stronger, both weighted."""
    kept: Mapping[str, float]
    """Branch → share of its mass that survives the election of signs."""
    deciding: tuple[Evidence, Evidence]


def _contest(
    facts: Facts, inspection: Inspection, pair: InspectedPair, weights: Mapping[str, float], norms: Mapping[str, float]
) -> _Contest:
    weak, strong = sorted(weights, key=lambda name: weights[name] * norms[name])
    ratio = weights[weak] * norms[weak] / (weights[strong] * norms[strong])
    equal = weights[weak] == weights[strong]
    counted = _counted(pair) if equal else {}
    kept = counted or {
        name: _estimated(inspection, pair, name, other, weights[name] / weights[other])
        for name, other in ((weak, strong), (strong, weak))
    }
    how, weighted = "" if counted else " (estimated)", "" if equal else ", weighted as the recipes do"
    norm = f"‖δ‖₂ of {weak} / {strong}{weighted}"
    survives = f"Share of {weak}'s Σ|δ| that survives the sign election{how}"
    deciding = (
        Evidence(norm, ratio, facts.inspection_file, NORM_RATIO, slack=NORM_RATIO / 10),
        Evidence(survives, kept[weak], facts.inspection_file, SURVIVAL, slack=0.03),
    )
    return _Contest(weak, strong, weights[strong], ratio, kept, deciding)


def _weights(facts: Facts, branches: tuple[str, str], norms: Mapping[str, float]) -> dict[str, float]:
    """Those of the recipe in which the two are the nearest to each other: if it is well, there is a way to fuse them."""

    def nearness(weights: tuple[float, float]) -> float:
        small, great = sorted(weight * norms[name] for name, weight in zip(branches, weights, strict=True))
        return small / great

    nearest: tuple[float, float] = max(facts.weights(*branches), key=nearness)
    return dict(zip(branches, nearest, strict=True))


def _counted(pair: InspectedPair) -> dict[str, float]:
    """Branch → share of its mass that survives at equal weights, untrimmed; empty if the inspection did not weigh that."""
    figures = pair.figures.total
    whole = figures.ties.get(threshold_key(1.0))
    if whole is None or whole.mass is None or figures.l1 is None:
        return {}
    return {name: whole.mass[n] / figures.l1[n] for n, name in enumerate((pair.first, pair.second))}


def _estimated(inspection: Inspection, pair: InspectedPair, name: str, other: str, weight: float) -> float:
    own, opponent, shared = inspection.delta(name), inspection.delta(other), pair.figures.total
    contested = shared.entries / own.figures.total.entries
    kept = survival(own.histogram, opponent.histogram, shared.conflict_weight or 0.0, contested, weight)
    assert kept is not None, "a delta with a norm has mass"
    return kept


def _shares(facts: Facts, pair: InspectedPair, weak: str) -> list[Evidence]:
    """The weaker one's part in the merged delta at equal weights, at the density that recipes trim to.

    For scale only: that of a healthy sparse branch is small too.
    """
    ties, source = pair.figures.total.ties, facts.inspection_file
    densities = [facts.density(pair.first, pair.second), facts.density(pair.second, pair.first)]
    used = min(filter(None, densities), default=1.0)
    key = min(ties, key=lambda key: abs(float(key) - used), default=None)
    if key is None:
        return []
    found = []
    for what, parts in (("merged Σ|δ|", ties[key].mass), ("elected entries", ties[key].elected)):
        if parts is not None and sum(parts) > 0:
            part = parts[0 if pair.first == weak else 1] / sum(parts)
            found.append(Evidence(f"{weak}'s share of the {what}, at density {float(key):g}", part, source))
    return found


def _balance(facts: Facts, strong: str, weak: str, ratio: float, weight: float) -> list[Remedy]:
    """Against dominance: a weight that makes the norms equal; a lower learning rate where that is what differs."""
    found = [
        Remedy(
            facts.option("weight", strong, weak), RECIPE, f"{weight:g}", f"{weight * ratio:.2g}",
            f"It gives both deltas the norm of {weak}. With --no-normalize: a normalising method divides the weight out again "
            "wherever one branch is alone.",
        )
    ]  # fmt: skip
    curves = {name: facts.curves.get(name) for name in (strong, weak)}
    rates = {name: curve.peak_learning_rate or 0.0 if curve else 0.0 for name, curve in curves.items()}
    if rates[strong] > 3 * rates[weak] > 0:
        reason = f"The highest that was logged is {rates[strong] / rates[weak]:.3g} times that of {weak}."
        found.append(
            Remedy("learning_rate", f"configs/{strong}.yml", f"{rates[strong]:.2g}", f"{rates[weak]:.2g}", reason)
        )
    return found


def survival(
    own: Histogram,
    other: Histogram,
    conflict: float,  # share of Σ|δ₁δ₂| in entries of opposite signs
    contested: float = 1.0,  # share of the branch's entries that the other branch can change too
    weight: float = 1.0,  # of the branch, in units of the other's
) -> float | None:
    """Share of a branch's mass that takes part in the merged delta, without trimming; None for a delta of zeros."""
    opponents = sorted(_bins(other))
    total = other.zeros + sum(count for _, count in opponents)
    mass = lost = 0.0
    for size, count in _bins(own, weight):
        greater = sum(n * (0.5 if there == size else 1.0) for there, n in opponents if there >= size)
        mass += count * size
        lost += count * size * greater / total
    return 1.0 - conflict * contested * lost / mass if mass else None


def _bins(histogram: Histogram, weight: float = 1.0) -> Iterator[tuple[float, int]]:
    """(geometric middle × weight, count) of what is not zero; what lies beyond the ends is taken to lie at them."""
    edges = histogram.log10_edges
    for low, high, count in zip(edges, edges[1:], histogram.counts, strict=False):
        if count:
            yield weight * 10.0 ** ((low + high) / 2), count
    if histogram.underflow:
        yield weight * 10.0 ** edges[0], histogram.underflow
    if histogram.overflow:
        yield weight * 10.0 ** edges[-1], histogram.overflow
