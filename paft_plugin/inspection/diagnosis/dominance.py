"""Dominance: one delta's norm and its signs decide the merge alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from paft_plugin.inspection.diagnosis.facts import Facts
from paft_plugin.inspection.diagnosis.judge import judged, unknown
from paft_plugin.inspection.diagnosis.remedies import balance
from paft_plugin.inspection.diagnosis.survival import survival
from paft_plugin.inspection.inspected import InspectedPair, Inspection
from paft_plugin.inspection.verdict import Check, Evidence, Signature

NORM_RATIO = 1 / 3
SURVIVAL = 0.75
SIGNATURE: Signature = "dominance"


def dominance(facts: Facts, sft: str, preference: str, excessive: bool) -> Check:
    """Look for it in a pair.

    Decided by two at once: a norm that is far the smaller, and entries of which much is overruled. A healthy sparse delta has a
    small norm, few entries and a small share of the merged delta, and yet nearly all of it survives.

    Args:
        excessive: whether the SFT branch suffers from excessive L1, which would explain that it is dominated.
    """
    branches, pair = (sft, preference), facts.pair(sft, preference)
    if facts.inspection is None or pair is None:
        where = f"{facts.inspection_file}: the pair of {sft} and {preference} (axolotl paft inspect)"
        return unknown(SIGNATURE, branches, "The two were not inspected as a pair.", [where])
    bare = dict(zip((pair.first, pair.second), map(math.sqrt, pair.figures.total.squares), strict=True))
    if zeros := [name for name in branches if not bare[name]]:
        return unknown(SIGNATURE, branches, f"The delta of {zeros[0]} is zero: there is nothing to dominate.")
    weights = _weights(facts, branches, bare)
    weak, strong = sorted(branches, key=lambda name: weights[name] * bare[name])
    ratio = weights[weak] * bare[weak] / (weights[strong] * bare[strong])
    kept = {
        name: _survival(facts.inspection, pair, name, other, weights[name] / weights[other])
        for name, other in ((weak, strong), (strong, weak))
    }
    source, weighted = facts.inspection_file, "" if len(set(weights.values())) == 1 else ", weighted as the recipes do"
    deciding = [
        Evidence(f"‖δ‖₂ of {weak} / {strong}{weighted}", ratio, source, NORM_RATIO, slack=NORM_RATIO / 10),
        Evidence(f"Share of {weak}'s Σ|δ| that survives the sign election", kept[weak], source, SURVIVAL, slack=0.03),
    ]
    mass = {name: weights[name] * kept[name] * facts.inspection.delta(name).figures.total.l1 for name in kept}
    evidence = [*deciding, *_shares(facts, pair, weak, mass)]
    reasons = [item for item in deciding if not item.speaks_for]
    if reasons:
        message = f"Neither overrules the other: {kept[weak]:.0%} of {weak} and {kept[strong]:.0%} of {strong} survive."
        return judged(SIGNATURE, branches, "clear", message, evidence=evidence, deciding=reasons)
    if excessive and weak == sft:
        message = f"{strong} overrules {sft} because excessive L1 left nothing of {sft}. Mend that first."
        return judged(SIGNATURE, branches, "clear", message, evidence=evidence)
    return judged(
        SIGNATURE,
        branches,
        "found",
        f"{strong} decides the merge: its delta is {1 / ratio:.3g} times {weak}'s, of which {kept[weak]:.0%} survives.",
        evidence=evidence,
        deciding=deciding,
        culprit=strong,
        remedies=balance(facts, sft, strong, weak, ratio, weights[strong]),
    )


def _weights(facts: Facts, branches: tuple[str, str], norms: Mapping[str, float]) -> dict[str, float]:
    """Those of the recipe in which the two are the nearest to each other: if it is well, there is a way to fuse them."""

    def nearness(weights: tuple[float, float]) -> float:
        small, great = sorted(weight * norms[name] for name, weight in zip(branches, weights, strict=True))
        return small / great

    nearest: tuple[float, float] = max(facts.weights(*branches), key=nearness)
    return dict(zip(branches, nearest, strict=True))


def _survival(inspection: Inspection, pair: InspectedPair, name: str, other: str, weight: float) -> float:
    own, opponent, shared = inspection.delta(name), inspection.delta(other), pair.figures.total
    kept = survival(
        own.histogram,
        opponent.histogram,
        conflict=shared.conflict_weight or 0.0,
        contested=shared.entries / own.figures.total.entries,
        weight=weight,
    )
    assert kept is not None, "a delta with a norm has mass"
    return kept


def _shares(facts: Facts, pair: InspectedPair, weak: str, mass: Mapping[str, float]) -> list[Evidence]:
    """The weaker one's part in the merged delta: for scale only, since that of a healthy sparse branch is small too."""
    source = facts.inspection_file
    found = [Evidence(f"{weak}'s share of the merged Σ|δ|", mass[weak] / sum(mass.values()), source)]
    used = facts.density(pair.first, pair.second) or facts.density(pair.second, pair.first) or 1.0
    key = min(pair.figures.total.ties, key=lambda key: abs(float(key) - used), default=None)
    elected = pair.figures.total.ties[key].elected if key is not None else (0.0, 0.0)
    if key is not None and sum(elected) > 0:
        share = elected[0 if pair.first == weak else 1] / sum(elected)
        found.append(Evidence(f"{weak}'s share of the elected entries, at density {float(key):g}", share, source))
    return found
