"""Diagnosis of a run: which branch is which, and the check of each failure signature, with evidence, confidence and remedies.

diagnosis = diagnose(Path("outputs/run"))
for check in diagnosis.findings: ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from pkgutil import iter_modules

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.evaluation.arms import Role
from paft_plugin.inspection.diagnosis import signatures
from paft_plugin.inspection.diagnosis.facts import Facts, read_facts
from paft_plugin.inspection.diagnosis.scores import outcomes, tempered
from paft_plugin.inspection.diagnosis.verdict import (
    ANY_PAIR_CHECKS,
    BRANCH_CHECKS,
    PAIR_CHECKS,
    Diagnosis,
    PairCheck,
    in_order,
)


def diagnose(
    folder: Path, sft: Sequence[str] = (), preferences: Sequence[str] = (), twins: Mapping[str, str] | None = None
) -> Diagnosis:
    """Look for every failure signature in a run's folder, or in one that `axolotl paft inspect` wrote.

    `sft` are the SFT branches that are fused, `preferences` those of preference, `twins` the dense twins of SFT branches
    (`""`: of the first). What is not given stands in the run's `run.json`; without one names say it: `sft-l1` (or `sft`) is SFT,
    `sft` its twin, all others are of preference.

    Raises:
        PaftError: the folder is missing or holds nothing to diagnose; a name is no branch's; no name says which branch is SFT.
    """
    for module in iter_modules(signatures.__path__):
        import_module(f"{signatures.__name__}.{module.name}")  # registers its check, the first time
    facts = _with_roles(read_facts(folder), sft, preferences, twins or {})
    sft, preferences = _of_role(facts, "sft", sft), _of_role(facts, "preference", preferences)
    twin_of = {name: twin for name in sft if (twin := facts.branches[name].twin) in facts.branches and twin}
    alone = [
        tempered(check(facts, name, twin_of.get(name)), outcomes(facts, (name,), twin_of.get(name)))
        for name in sft
        for check in in_order(BRANCH_CHECKS)
    ]
    excuses = {check.branches[0]: check.signature for check in reversed(alone) if check.found}
    together = [
        tempered(check(facts, *pair, excuses), outcomes(facts, pair, None))
        for pair in combinations([*sft, *preferences], 2)
        for check in _pair_checks(facts, pair)
    ]
    return Diagnosis(str(folder), sft, preferences, twin_of, (*alone, *together))


def _pair_checks(facts: Facts, pair: tuple[str, str]) -> list[PairCheck]:
    """What is looked for in two branches: two of preference are taken for alternatives unless an arm fuses both."""
    are_alternatives = all(facts.branches[name].role == "preference" for name in pair) and not facts.are_fused(*pair)
    return in_order([*ANY_PAIR_CHECKS, *([] if are_alternatives else PAIR_CHECKS)])


def _with_roles(facts: Facts, sft: Sequence[str], preferences: Sequence[str], twins: Mapping[str, str]) -> Facts:
    """The facts, with the roles and twins that were given."""
    there = ", ".join(facts.branches)
    given = {"--sft": sft, "--preference": preferences, "--twin": [*filter(None, twins), *twins.values()]}
    raise_if_any(
        [
            f"{option} {name}: no such branch in {facts.folder}. There are {there}."
            for option, names in given.items()
            for name in names
            if name not in facts.branches
        ]
    )
    roles: dict[str, Role] = {**dict.fromkeys(preferences, "preference"), **dict.fromkeys(sft, "sft")}
    trained = [name for name, arm in facts.branches.items() if arm.is_sft and name not in twins.values()]
    twins = {name or next(iter([*sft, *trained]), ""): twin for name, twin in twins.items()}
    told = {
        name: arm.model_copy(update={"role": roles.get(name, arm.role), "twin": twins.get(name, arm.twin)})
        for name, arm in facts.branches.items()
    }
    return replace(facts, branches=told)


def _of_role(facts: Facts, role: Role, given: Sequence[str]) -> tuple[str, ...]:
    """The branches of a role that are diagnosed: the given ones, or all but dense twins and controls.

    Of SFT those that are fused; other forms of one only without one.
    """
    if given:
        return tuple(given)
    twins = {arm.twin for arm in facts.branches.values()}
    own = {name: arm for name, arm in facts.branches.items() if arm.role == role and arm.control is None}
    found = [name for name in own if name not in twins]
    if role == "preference":
        return tuple(found)
    if not found:
        there = ", ".join(facts.branches)
        raise PaftError(f"{facts.folder}: its branches are {there}; say with --sft which one was trained by SFT.")
    fused = [name for name in found if facts.are_fused(name)] or found
    return tuple([name for name in fused if not own[name].beside] or fused)
