"""Continued branch: one delta holds the other, so that the merge counts that one twice."""

from __future__ import annotations

from functools import partial

from paft_plugin.deltas.containment import COSINE, OFF_ONE, SPREAD, Containment, containment
from paft_plugin.inspection.diagnosis.facts import Facts
from paft_plugin.inspection.diagnosis.verdict import (
    RECIPE,
    Check,
    Evidence,
    Excuses,
    Remedy,
    judged,
    of_any_pair,
    unknown,
)
from paft_plugin.inspection.inspected import InspectedPair

SIGNATURE = "continued branch"


@of_any_pair
def continued(facts: Facts, one: str, other: str, _excuses: Excuses) -> Check:
    """Look for a branch that continued the other's training instead of starting from the base.

    Decided by three at once: how many times one delta holds the other, how much that differs from tensor to tensor, and
    the cosine. Branches that learnt the same apart from each other have one or two of them.
    """
    branches, pair = (one, other), facts.pair(one, other)
    verdict = partial(judged, SIGNATURE, branches)
    if pair is None:
        where = f"{facts.inspection_file}: the pair of {one} and {other} (axolotl paft inspect)"
        return unknown(SIGNATURE, branches, "The two were not inspected as a pair.", [where])
    sizes = {name: measures.l2 for name in branches if (measures := facts.measures(name)) is not None}
    both = {inner: found for inner in branches if (found := _found(pair, inner, sizes)) is not None}
    if not both:
        return unknown(SIGNATURE, branches, "One of the two deltas is zero: it holds nothing.")
    # Two that are all but equal hold each other, and the first one is the inner: of SFT and preference the former.
    inner = next((name for name, found in both.items() if found.holds), min(both, key=lambda name: sizes[name]))
    outer, found = next(name for name in branches if name != inner), both[inner]
    source = facts.inspection_file
    times = f"How far from 1 times {outer} holds {inner}, ⟨δ, δ′⟩/‖δ‖² = {found.projection:.3g}"
    evidence = [
        Evidence(f"Cosine of {inner} and {outer}", found.cosine, source, COSINE, above=True, slack=COSINE / 10),
        Evidence(times, abs(found.projection - 1), source, OFF_ONE, slack=OFF_ONE / 10),
        Evidence("Its standard deviation from tensor to tensor", found.spread, source, SPREAD, slack=SPREAD / 10),
    ]
    if not found.holds:
        reasons = [item for item in evidence if not item.speaks_for]
        message = f"{outer} does not hold {inner}: they were trained apart."
        return verdict("clear", message, evidence=evidence, deciding=reasons, weighed=reasons)
    return verdict(
        "found", found.sentence(inner, outer), evidence=evidence, deciding=evidence, culprit=outer,
        remedies=_apart(facts, inner, outer),
    )  # fmt: skip


def _found(pair: InspectedPair, inner: str, sizes: dict[str, float]) -> Containment | None:
    """How far the other one holds `inner`; what of either lies in tensors that the other cannot change is one tensor more."""
    turn = 1 if pair.first == inner else -1
    figures = [each.figures for each in pair.figures.tensors] or [pair.figures.total]
    squares = [each.squares[::turn] for each in figures]
    tensors = [(each.agreeing - each.opposing, own, other) for each, (own, other) in zip(figures, squares, strict=True)]
    whole = [sizes.get(name, 0.0) ** 2 for name in (pair.first, pair.second)[::turn]]
    rest = [max(0.0, square - sum(each[place] for each in tensors)) for place, square in enumerate(whole, 1)]
    return containment([*tensors, (0.0, rest[0], rest[1])])


def _apart(facts: Facts, inner: str, outer: str) -> list[Remedy]:
    """Against counting twice: the continued branch alone, one that starts from the base, or the other one taken out of it."""
    option, weight = facts.option("weight", inner, outer), f"{facts.weights(inner, outer)[0][0]:g}"
    from_base = "Trained from the base, it holds only what it was trained for."
    apart = f"With --method task_arithmetic it makes a model of what {outer} learnt after {inner}, to be fused in its place."
    return [
        Remedy("arms", "paft.yml", None, outer, "It holds both trainings: use it alone, without a fusion."),
        Remedy("lora_model_dir", f"configs/{outer}.yml", None, "null", from_base),
        Remedy(option, RECIPE, weight, "-1", apart),
    ]
