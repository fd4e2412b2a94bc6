"""Dense–sparse mismatch: one delta is far denser than the other, and the merge suffers from it."""

from __future__ import annotations

from functools import partial

from paft_plugin.evaluation.arms import Role
from paft_plugin.evaluation.results import RESULTS
from paft_plugin.formats import threshold_key
from paft_plugin.inspection.diagnosis.facts import Facts
from paft_plugin.inspection.diagnosis.scores import fused_loss
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
from paft_plugin.inspection.measures import Measures

DENSITY_RATIO = 1 / 5
WEIGHT = 1 / 3  # of the sparser one's norm: that of a delta which dominance would take for overruled
TARGETS = (0.5, 0.95)  # the least and the greatest sparsity that is advised
SIGNATURE = "dense-sparse mismatch"


@of_pair
def mismatch(facts: Facts, one: str, other: str, excuses: Excuses) -> Check:
    """Look for a pair whose densities are far apart, to the merge's harm.

    Decided by how far the densities are apart, and by what the merge loses of what the sparser branch was trained for. Where no
    scores say that, a far denser SFT delta is taken to do harm unless it is tiny, because the paper says so; a far denser
    preference delta is not, because on trained branches it did none.
    """
    branches = (one, other)
    verdict = partial(judged, SIGNATURE, branches)
    measured = {name: measures for name in branches if (measures := facts.measures(name)) is not None}
    if len(measured) < 2:
        where = f"{facts.inspection_file}: the deltas of {one} and {other} (axolotl paft inspect)"
        return unknown(SIGNATURE, branches, "The two were not inspected.", [where])
    if zeros := [name for name, measures in measured.items() if not measures.l1]:
        return unknown(SIGNATURE, branches, f"The delta of {zeros[0]} is zero: it has no density.")
    sparse, dense = sorted(branches, key=lambda name: density(measured[name]))
    structure, weight = _structure(facts, sparse, dense, measured), _weight(facts, sparse, dense, measured)
    harm = [loss] if (loss := fused_loss(facts, sparse, dense)) is not None else []
    told = [item for item in harm if item.threshold is not None]
    missing = (
        [] if told else [f"{RESULTS}: scores of {sparse} and of an arm that fuses it with {dense}, on enough items"]
    )
    evidence = [*structure, weight, *harm]
    gap = f"{dense} is {1 / structure[0].value:.3g} times as dense as {sparse}"
    if not structure[0].speaks_for:
        message = f"{sparse} and {dense} are about as dense (1 : {1 / structure[0].value:.2g})."
        return verdict("clear", message, evidence=structure, deciding=structure[:1])
    if excuse := excuses.get(sparse):
        message = f"{gap} because of {excuse} in {sparse}. Mend that first."
        return verdict("clear", message, evidence=evidence, missing=missing)
    suffers, clause, reasons = _suffering(facts.branches[dense].role, sparse, weight, told)
    if not suffers:
        message = f"{gap}, but {clause}."
        # Far apart is no doubt about this outcome; it is what the outcome is about.
        return verdict("clear", message, evidence=evidence, deciding=reasons, weighed=reasons, missing=missing)
    return verdict(
        "found", f"{gap}, and {clause}.", evidence=evidence, deciding=[structure[0], *reasons], missing=missing,
        culprit=dense, remedies=_thinner(facts, dense, sparse),
    )  # fmt: skip


def _suffering(
    denser: Role | None, sparse: str, weight: Evidence, harm: list[Evidence]
) -> tuple[bool, str, list[Evidence]]:
    """Whether the merge of two deltas that are far apart suffers, in words, and by what."""
    if harm:
        suffers = bool(harm[0].speaks_for)
        return suffers, f"the merge {'loses' if suffers else 'keeps'} what {sparse} was trained for", harm
    if denser != "sft":
        return False, "that alone hurt no merge that was measured", []
    if not weight.speaks_for:
        return False, "too small to matter in a merge", [weight]
    clause = "it is not small: the mismatch that the paper warns of, though no scores say what the merge loses"
    return True, clause, [weight]


def _structure(facts: Facts, sparse: str, dense: str, measured: dict[str, Measures]) -> list[Evidence]:
    """The ratio of densities by three measures; the first decides."""
    thin, thick = measured[sparse], measured[dense]
    ratios = {f"Density of {sparse} / {dense}, density = (‖δ‖₁/‖δ‖₂)²/n": density(thin) / density(thick)}
    if thin.gini is not None and thick.gini is not None and thick.gini < 1:
        ratios["The same ratio of 1 − Gini"] = (1 - thin.gini) / (1 - thick.gini)
    threshold = facts.threshold
    if threshold is not None and thick.sparsity(threshold) < 1:
        what = f"The same ratio of the share of entries above {threshold_key(threshold)}"
        ratios[what] = (1 - thin.sparsity(threshold)) / (1 - thick.sparsity(threshold))
    slack, source = DENSITY_RATIO / 4, facts.inspection_file
    return [Evidence(what, ratio, source, DENSITY_RATIO, slack=slack) for what, ratio in ratios.items()]


def _weight(facts: Facts, sparse: str, dense: str, measured: dict[str, Measures]) -> Evidence:
    """Whether the denser delta is large enough to do harm."""
    ratio = measured[dense].l2 / measured[sparse].l2
    what = f"‖δ‖₂ of {dense} / {sparse}: large enough to matter"
    return Evidence(what, ratio, facts.inspection_file, WEIGHT, above=True, slack=WEIGHT / 10)


def _thinner(facts: Facts, dense: str, sparse: str) -> list[Remedy]:
    """Against a mismatch: make the denser delta as sparse as the other one, in training (SFT) or in the recipe."""
    nonzero = _nonzero(facts, sparse)
    found = []
    if facts.branches[dense].role == "sft":
        target = min(max(1 - nonzero, TARGETS[0]), TARGETS[1])
        proof = facts.proofs.get(dense)
        old = proof.target_sparsity if proof else None
        found.append(
            Remedy(
                "paft_target_sparsity", f"configs/{dense}.yml", f"{old:g}" if old else None, f"{target:.2f}",
                f"The sparsity of {sparse}, within {TARGETS[0]:g} and {TARGETS[1]:g}, with plugins: [paft_plugin.PAFTPlugin].",
            )
        )  # fmt: skip
    used = facts.density(dense, sparse)
    old_density = f"{used:g}" if used is not None else None
    reason = f"Without training again: it keeps as many entries of {dense} as {sparse} has."
    found.append(
        Remedy(facts.option("density", dense, sparse), RECIPE, old_density, f"{max(nonzero, 0.01):.2g}", reason)
    )
    return found


def _nonzero(facts: Facts, branch: str) -> float:
    """Share of entries that count: the scale-free density, or the share above the threshold if that is less."""
    measures = facts.measures(branch)
    assert measures is not None, "the caller has compared its density"
    above = 1 - measures.sparsity(facts.threshold) if facts.threshold is not None else 1.0
    return min(density(measures), above)


def density(measures: Measures) -> float:
    """Share of entries that a delta of equal magnitudes with the same norms would have: (‖δ‖₁/‖δ‖₂)² / n.

    1 if all |δ| are equal, 0.64 for a normal distribution, 1/n for a single entry. No factor on the delta changes it, so a delta
    that is merely small is not sparse.
    """
    return (measures.l1 / measures.l2) ** 2 / measures.entries
