"""Excessive L1: the penalty kept the SFT branch from learning."""

from __future__ import annotations

import math
from functools import partial

from paft_plugin.evaluation.results import RESULTS
from paft_plugin.formats import number, share, threshold_key
from paft_plugin.inspection.diagnosis.facts import Facts
from paft_plugin.inspection.diagnosis.scores import lost, tolerance
from paft_plugin.inspection.diagnosis.verdict import Check, Evidence, Remedy, judged, of_branch, unknown
from paft_plugin.inspection.training_log import Curve

RECOVERY = 0.5  # of what the dense twin learnt
FALL = 0.05  # of the loss at the start, where there is no twin
LEARNT = 0.02  # of the loss at the start: a twin that learnt less is nothing to compare with
EMPTY = 0.999  # sparsity at the threshold
FAINT = 2e-4  # ‖δ‖₂ / ‖θ_pre‖₂
ALIKE = 0.05  # between the learning rates of twins, in case one was logged at other steps
TARGET = 0.9  # the paper's: L1 takes the SFT delta above 90 % sparsity
STEP = 10.0  # by which λ falls where nothing says by how much
SIGNATURE = "excessive L1"


@of_branch
def excessive_l1(facts: Facts, sft: str, twin: str | None) -> Check:
    """Look for a penalty that was too strong for the SFT branch.

    Decided by the skill that the dense twin has and the penalised branch has not, where both were scored; else by the loss: how
    much of what the twin learnt the branch learnt too. Without a twin, by a loss that hardly fell and a delta that is hardly
    there; without a loss or a `paft.json`, the delta must say so itself.
    """
    proof = facts.proofs.get(sft)
    verdict = partial(judged, SIGNATURE, (sft,))
    if proof and not proof.steps_penalised:
        return verdict("clear", f"No step of {sft} was penalised.")
    if proof is None and any(arm.name == sft and not arm.penalised for arm in facts.planned):
        return verdict("clear", f"{sft} is trained without the penalty.")
    losses, missing = _losses(facts, sft, twin)
    delta, untold = _delta(facts, sft)
    missing += untold
    scores = _skill(facts, sft, twin)
    told = [item for item in scores if item.threshold is not None]
    if not proof:
        missing.append(f"branches/{sft}/paft.json: whether a penalty ran at all")
    compared = told or [item for item in losses if item.threshold == RECOVERY]
    # A loss that did not fall has many reasons; the penalty's leaves an empty delta behind.
    deciding = compared if compared and proof else [*losses, *delta]
    if not delta and not (compared and proof):
        return unknown(SIGNATURE, (sft,), f"Too little is known of {sft}: no delta, or no loss to compare.", missing)
    found = all(item.speaks_for for item in deciding)
    if not (told or found):
        # A loss that fell as far as the twin's has cost half of a skill.
        missing.append(f"{RESULTS}: the skill of {sft} and of a dense twin, on enough items to tell them apart")
    evidence, how = [*scores, *losses, *delta], _how(facts, sft, told, twin)
    verdict = partial(verdict, evidence=evidence, deciding=deciding, missing=missing)
    if not found:
        return verdict("clear", f"{sft} has learnt under its penalty: {how}.")
    remedies = _weaker_penalty(facts, sft, twin)
    if told and twin is not None:
        remedies = [*_kept_skill(facts, sft, twin, told[0]), *_dense_arms(facts, twin)] or remedies
    return verdict("found", f"The penalty keeps {sft} from learning: {how}.", culprit=sft, remedies=remedies)


def _skill(facts: Facts, sft: str, twin: str | None) -> list[Evidence]:
    """What the twin can do and the branch cannot; nothing where they were not trained alike, as far as their curves tell."""
    own, dense = facts.curves.get(sft), facts.curves.get(twin or "")
    if twin is None or (own is not None and dense is not None and _difference(own, dense)):
        return []
    loss = lost(facts, sft, twin, sft)
    return [] if loss is None else [loss]


def _losses(facts: Facts, sft: str, twin: str | None) -> tuple[list[Evidence], list[str]]:
    """What the loss says, and what is missing for it to say more."""
    curve = facts.curves.get(sft)
    start, final = (curve.start_loss, curve.final_loss) if curve is not None else (None, None)
    if curve is None or start is None or final is None:
        return [], [f"logs/{sft}.log or a checkpoint's trainer_state.json: the loss of {sft}"]
    source = curve.sources[0]
    fall = Evidence("Fall of the loss, of its start", (start - final) / start, source, FALL, slack=FALL / 2)
    dense = facts.curves.get(twin) if twin is not None else None
    if dense is None or dense.start_loss is None or dense.final_loss is None:
        return [fall], ["the loss of a dense twin (the same config without paft_* keys)"]
    if difference := _difference(curve, dense):
        return [fall], [f"a dense twin that was trained alike: {twin}'s {difference}"]
    # Both begin at the base model's loss. The first that is logged is a mean over some steps: the higher is the nearer to it.
    top, bottom = max(start, dense.start_loss), dense.final_loss
    if top - bottom < LEARNT * top:
        return [fall], [f"a dense twin that learns: the loss of {twin} fell by less than {LEARNT:.0%} itself"]
    what = f"Share of the fall of {twin}'s loss ({top:.3g} → {bottom:.3g}) that {sft} made too"
    both = f"{source}, {dense.sources[0]}"
    return [Evidence(what, (top - final) / (top - bottom), both, RECOVERY, slack=0.1)], []


def _difference(curve: Curve, dense: Curve) -> str | None:
    """What keeps two trainings from being twins, as far as their curves tell."""
    last = [each.loss_steps[-1] for each in (dense, curve) if each.loss_steps]
    if len(set(last)) > 1:
        return f"last step is {last[0]}, not {last[1]}"
    own, other = curve.peak_learning_rate, dense.peak_learning_rate
    # A log rounds to four digits, and may miss the step of the peak by little.
    if own and other and not math.isclose(own, other, rel_tol=ALIKE):
        return f"learning rate is {other:g}, not {own:g}"
    return None


def _delta(facts: Facts, sft: str) -> tuple[list[Evidence], list[str]]:
    """What the delta says: how sparse, how faint."""
    measures = facts.measures(sft)
    if measures is None:
        proof = facts.proofs.get(sft)
        shares = (proof.sparsity if proof else None) or {}
        lowest = sorted(shares, key=float)[:1]
        missing = [f"{facts.inspection_file}: the delta of {sft} (axolotl paft inspect)"]
        return [_sparsity(key, shares[key], f"branches/{sft}/paft.json") for key in lowest], missing
    source = facts.inspection_file
    evidence = []
    if (threshold := facts.threshold) is not None:
        evidence.append(_sparsity(threshold_key(threshold), measures.sparsity(threshold), source))
    if measures.relative is not None:
        evidence.append(Evidence("‖δ‖₂ / ‖θ_pre‖₂", measures.relative, source, FAINT, slack=FAINT / 2))
    return evidence, []


def _sparsity(threshold: str, share: float, source: str) -> Evidence:
    return Evidence(f"Sparsity at {threshold}", share, source, EMPTY, above=True, slack=(1 - EMPTY) / 2)


def _how(facts: Facts, sft: str, told: list[Evidence], twin: str | None) -> str:
    """What decided, in words: scores that tell the two apart, or else the loss."""
    curve, measures, goal = facts.curves.get(sft), facts.measures(sft), facts.goal(sft)
    own, dense = (facts.scored(arm, goal) for arm in (sft, twin)) if told and goal is not None else (None, None)
    if own is not None and dense is not None and goal is not None:
        return f"its {goal.name} is {number(own.scores[goal.name])}, that of {twin} {number(dense.scores[goal.name])}"
    if curve is not None and curve.start_loss is not None and curve.final_loss is not None:
        return f"its loss went from {curve.start_loss:.3g} to {curve.final_loss:.3g}"
    if measures is not None and measures.relative is not None:
        return f"the norm of its delta is {measures.relative:.2g} of the base's"
    proof = facts.proofs.get(sft)
    return f"its paft.json gives the norm ‖δ‖₁ = {proof.l1_norm if proof else None}"


def _kept_skill(facts: Facts, sft: str, twin: str, loss: Evidence) -> list[Remedy]:
    """Against a lost skill: a target, or λ, at which it stays within the 95 % interval of the dense twin's.

    Where another penalised branch in the folder stayed within it, that one's sparsity. Else the skill is taken to fall in
    proportion from the twin to this branch: everywhere that it was measured it fell later (`DIAGNOSIS.md`).
    """
    goal, proof = facts.goal(sft), facts.proofs.get(sft)
    allowed = tolerance(facts, sft, twin)
    own, dense = _share_at_target(facts, sft, sft), _share_at_target(facts, twin, sft)
    if goal is None or not allowed:
        return []
    where, part, found = f"configs/{sft}.yml", min(1.0, allowed / loss.value), []
    line = (
        f"{number(allowed)} of the {number(loss.value)} of {goal.name} that were lost lie within {twin}'s 95 % interval"
    )
    kept = {name: at for name in facts.branches if (at := _kept_at(facts, name, sft, twin, allowed)) is not None}
    if own is not None and dense is not None and dense < own:
        best = max(kept, key=lambda name: kept[name], default=None)
        target = dense + part * (own - dense) if best is None else kept[best]
        old = f"{proof.target_sparsity:g}" if proof and proof.target_sparsity is not None else None
        way = f"{line}: that part of the way from {share(dense)} to {share(own)}, a cautious guess. Score it again."
        reason = way if best is None else f"{best} ended there, and kept {goal.name}."
        found.append(Remedy("paft_target_sparsity", where, old, f"{math.floor(100 * target) / 100:g}", reason))
    strength = _last_strength(facts, sft)
    if strength and proof is not None and proof.target_sparsity is None:
        found.append(
            Remedy("paft_l1_lambda", where, f"{strength:g}", f"{part * strength:.1e}", f"{line}: λ in proportion.")
        )
    return found


def _kept_at(facts: Facts, name: str, sft: str, twin: str, allowed: float) -> float | None:
    """The sparsity of another penalised branch that keeps the skill; None of any other."""
    arm = facts.branches[name]
    if name == sft or not (arm.is_sft and arm.penalised) or facts.goal(name) != facts.goal(sft):
        return None
    loss = lost(facts, sft, twin, name)
    return _share_at_target(facts, name, sft) if loss is not None and loss.value <= allowed else None


def _share_at_target(facts: Facts, branch: str, sft: str) -> float | None:
    """A branch's sparsity at the threshold that the target of `sft` is about; the usual one if it has none."""
    proof, measures = facts.proofs.get(sft), facts.measures(branch)
    threshold = (proof.target_threshold if proof else None) or facts.threshold
    if threshold is None or measures is None or threshold_key(threshold) not in measures.small:
        return None
    return measures.sparsity(threshold)


def _dense_arms(facts: Facts, twin: str) -> list[Remedy]:
    """Without training again: the arms that fuse the dense twin instead, if the run has any."""
    arms = [arm for arm, fused in facts.recipes.items() if twin in fused]
    reason = f"They fuse {twin}, which has the skill already: nothing is trained."
    return [Remedy("arms", "paft.yml", None, ", ".join(arms[:3]), reason)] if arms else []


def _weaker_penalty(facts: Facts, sft: str, twin: str | None) -> list[Remedy]:
    """Against excessive L1: let a controller find λ, or a λ from what the dense twin gained and how large its delta is."""
    proof = facts.proofs.get(sft)
    target, strength = proof.target_sparsity if proof else None, _last_strength(facts, sft)
    where = f"configs/{sft}.yml"
    if target is not None:
        lower, reason = TARGET if target > TARGET else round(target / 2, 2), "A target that leaves room to learn."
        return [Remedy("paft_target_sparsity", where, f"{target:g}", f"{lower:g}", reason)]
    old = f"{strength:g}" if strength else None
    reason = "A controller finds the λ that ends there (the paper's 90 %)."
    found = [Remedy("paft_target_sparsity", where, None, f"{TARGET:g}", reason)]
    dense = facts.measures(twin) if twin is not None else None
    twin_norm, gain = dense.l1 if dense is not None else 0.0, _gain(facts, twin)
    on_delta = proof is None or proof.l1_on == "delta"
    if on_delta and twin_norm and gain and (strength is None or gain / twin_norm < strength):
        reason = f"The λ at which penalising the delta of {twin} costs what it gained: {gain:.3g} nats / ‖δ‖₁ of {twin_norm:.4g}."
        found.append(Remedy("paft_l1_lambda", where, old, f"{gain / twin_norm:.1e}", reason))
    elif strength:
        reason = (
            f"A factor of {STEP:g} at a time; a dense twin (the same config without paft_* keys) would say how far."
        )
        found.append(Remedy("paft_l1_lambda", where, old, f"{strength / STEP:.1e}", reason))
    return found


def _gain(facts: Facts, twin: str | None) -> float:
    curve = facts.curves.get(twin) if twin is not None else None
    if curve is None or curve.start_loss is None or curve.final_loss is None:
        return 0.0
    return max(0.0, curve.start_loss - curve.final_loss)


def _last_strength(facts: Facts, sft: str) -> float | None:
    proof = facts.proofs.get(sft)
    if proof is None:
        return None
    return (proof.history[-1].strength if proof.history else proof.strength) or None
