"""What to change against a failure signature, and to what value, computed from the run."""

from __future__ import annotations

from paft_plugin.inspection.diagnosis.facts import Facts, density
from paft_plugin.inspection.diagnosis.verdict import Remedy
from paft_plugin.inspection.measures import Measures

TARGET = 0.9  # the paper's: L1 takes the SFT delta above 90 % sparsity
TARGETS = (0.5, 0.95)
STEP = 10.0  # by which λ falls where nothing says by how much
RECIPE = "axolotl paft recipe"


def weaker_penalty(facts: Facts, sft: str, twin: str | None) -> list[Remedy]:
    """Against excessive L1: let a controller find λ, or a λ from what the dense twin gained and how large its delta is."""
    proof = facts.proofs.get(sft, {})
    target, strength = proof.get("target_sparsity"), _last_strength(facts, sft)
    where = f"configs/{sft}.yml"
    if target is not None:
        lower = TARGET if target > TARGET else round(target / 2, 2)
        return [
            Remedy("paft_target_sparsity", where, f"{target:g}", f"{lower:g}", "A target that leaves room to learn.")
        ]
    old = f"{strength:g}" if strength else None
    found = [
        Remedy(
            "paft_target_sparsity",
            where,
            None,
            f"{TARGET:g}",
            "A controller finds the λ that ends there (the paper's 90 %).",
        )
    ]
    twin_norm = _l1(facts, twin)
    gain = _gain(facts, twin)
    on_delta = proof.get("l1_on", "delta") == "delta"
    if on_delta and twin_norm and gain and (strength is None or gain / twin_norm < strength):
        reason = f"The λ at which penalising the delta of {twin} costs what it gained: {gain:.3g} nats / ‖δ‖₁ of {twin_norm:.4g}."
        found.append(Remedy("paft_l1_lambda", where, old, f"{gain / twin_norm:.1e}", reason))
    elif strength:
        reason = (
            f"A factor of {STEP:g} at a time; a dense twin (the same config without paft_* keys) would say how far."
        )
        found.append(Remedy("paft_l1_lambda", where, old, f"{strength / STEP:.1e}", reason))
    return found


def balance(facts: Facts, sft: str, strong: str, weak: str, ratio: float, weight: float) -> list[Remedy]:
    """Against dominance: a weight that makes the norms equal; a lower learning rate where that is what differs."""
    side = "sft" if strong == sft else "preference"
    found = [
        Remedy(
            f"--weight-{side}", RECIPE, f"{weight:g}", f"{weight * ratio:.2g}",
            f"It gives both deltas the norm of {weak}. With --no-normalize: a normalising method divides the weight out again "
            "wherever one branch is alone.",
        )
    ]  # fmt: skip
    rates = {name: _peak_rate(facts, name) or 0.0 for name in (strong, weak)}
    if rates[strong] > 3 * rates[weak] > 0:
        reason = f"The highest that was logged is {rates[strong] / rates[weak]:.3g} times that of {weak}."
        found.append(
            Remedy("learning_rate", f"configs/{strong}.yml", f"{rates[strong]:.2g}", f"{rates[weak]:.2g}", reason)
        )
    return found


def thinner(facts: Facts, sft: str, dense: str, sparse: str) -> list[Remedy]:
    """Against a mismatch: make the denser delta as sparse as the other one, in training (SFT) or in the recipe."""
    nonzero = _nonzero(facts, sparse)
    found = []
    if dense == sft:
        target = min(max(1 - nonzero, TARGETS[0]), TARGETS[1])
        old = facts.proofs.get(dense, {}).get("target_sparsity")
        found.append(
            Remedy(
                "paft_target_sparsity", f"configs/{dense}.yml", f"{old:g}" if old else None, f"{target:.2f}",
                f"The sparsity of {sparse}, within {TARGETS[0]:g} and {TARGETS[1]:g}, with plugins: [paft_plugin.PAFTPlugin].",
            )
        )  # fmt: skip
    side = "sft" if dense == sft else "preference"
    used = facts.density(dense, sparse)
    old_density = f"{used:g}" if used is not None else None
    reason = f"Without training again: it keeps as many entries of {dense} as {sparse} has."
    found.append(Remedy(f"--density-{side}", RECIPE, old_density, f"{max(nonzero, 0.01):.2g}", reason))
    return found


def _nonzero(facts: Facts, branch: str) -> float:
    """Share of entries that count: the scale-free density, or the share above the threshold if that is less."""
    measures = facts.measures(branch)
    assert measures is not None, "the caller has compared its density"
    above = 1 - measures.sparsity(facts.threshold) if facts.threshold is not None else 1.0
    return min(density(measures), above)


def _l1(facts: Facts, branch: str | None) -> float:
    measures: Measures | None = facts.measures(branch) if branch is not None else None
    return measures.l1 if measures is not None else 0.0


def _gain(facts: Facts, twin: str | None) -> float:
    curve = facts.curves.get(twin) if twin is not None else None
    if curve is None or curve.start_loss is None or curve.final_loss is None:
        return 0.0
    return max(0.0, curve.start_loss - curve.final_loss)


def _last_strength(facts: Facts, sft: str) -> float | None:
    proof = facts.proofs.get(sft, {})
    history = proof.get("history") or []
    strength = history[-1].get("lambda") if history else proof.get("lambda")
    return float(strength) if strength else None


def _peak_rate(facts: Facts, branch: str) -> float | None:
    curve = facts.curves.get(branch)
    return curve.peak_learning_rate if curve is not None else None
