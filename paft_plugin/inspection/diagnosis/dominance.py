"""Dominance: one delta's norm and its signs decide the merge alone."""

from __future__ import annotations

import math

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
    norms = dict(zip((pair.first, pair.second), map(math.sqrt, pair.figures.total.squares), strict=True))
    weak, strong = sorted(branches, key=lambda name: norms[name])
    if not norms[weak]:
        return unknown(SIGNATURE, branches, f"The delta of {weak} is zero: there is nothing to dominate.")
    ratio, source = norms[weak] / norms[strong], facts.inspection_file
    kept = {name: _survival(facts.inspection, pair, name, other) for name, other in ((weak, strong), (strong, weak))}
    deciding = [
        Evidence(f"‖δ‖₂ of {weak} / {strong}", ratio, source, NORM_RATIO, slack=NORM_RATIO / 10),
        Evidence(f"Share of {weak}'s Σ|δ| that survives the sign election", kept[weak], source, SURVIVAL, slack=0.03),
    ]
    evidence = [*deciding, *_shares(facts, facts.inspection, pair, kept)]
    if not all(item.speaks_for for item in deciding):
        message = f"Neither overrules the other: {kept[weak]:.0%} of {weak} and {kept[strong]:.0%} of {strong} survive."
        return judged(SIGNATURE, branches, "clear", message, evidence=evidence, deciding=deciding)
    if excessive and weak == sft:
        message = f"{strong} overrules {sft} because excessive L1 left nothing of {sft}. Mend that first."
        return judged(SIGNATURE, branches, "clear", message, evidence=evidence, deciding=deciding)
    return judged(
        SIGNATURE,
        branches,
        "found",
        f"{strong} decides the merge: its delta is {1 / ratio:.3g} times {weak}'s, of which {kept[weak]:.0%} survives.",
        evidence=evidence,
        deciding=deciding,
        culprit=strong,
        remedies=balance(facts, sft, strong, weak, ratio),
    )


def _survival(inspection: Inspection, pair: InspectedPair, name: str, other: str) -> float:
    own, opponent, shared = inspection.delta(name), inspection.delta(other), pair.figures.total
    kept = survival(
        own.histogram,
        opponent.histogram,
        conflict=shared.conflict_weight or 0.0,
        contested=shared.entries / own.figures.total.entries,
    )
    assert kept is not None, "a delta with a norm has mass"
    return kept


def _shares(facts: Facts, inspection: Inspection, pair: InspectedPair, kept: dict[str, float]) -> list[Evidence]:
    """Each branch's part in the merged delta: for scale only, since a healthy sparse branch has small ones too."""
    weak, strong = kept
    mass = {name: kept[name] * inspection.delta(name).figures.total.l1 for name in kept}
    found = [Evidence(f"{weak}'s share of the merged Σ|δ|", mass[weak] / sum(mass.values()), facts.inspection_file)]
    used = facts.density(weak, strong)
    key = min(pair.figures.total.ties, key=lambda key: abs(float(key) - (used or 1.0)), default=None)
    elected = pair.figures.total.ties[key].elected if key is not None else (0.0, 0.0)
    if sum(elected):
        share = elected[0 if pair.first == weak else 1] / sum(elected)
        what = f"{weak}'s share of the elected entries, of each delta the top {float(key or 1):.0%}"
        found.append(Evidence(what, share, facts.inspection_file))
    return found
