"""Diagnosis of a run: which branch is which, and the check of each failure signature, with evidence, confidence and remedies.

diagnosis = diagnose(Path("outputs/run"))
for check in diagnosis.findings: ...
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from paft_plugin.errors import PaftError
from paft_plugin.inspection.diagnosis import signatures
from paft_plugin.inspection.diagnosis.facts import Facts, read_facts
from paft_plugin.inspection.diagnosis.verdict import BRANCH_CHECKS, PAIR_CHECKS, Diagnosis, in_order


def diagnose(
    folder: Path, sft: str | None = None, preferences: tuple[str, ...] = (), twin: str | None = None
) -> Diagnosis:
    """Look for every failure signature in a run's folder, or in one that `axolotl paft inspect` wrote.

    `sft` is the SFT branch that is fused, by default `sft-l1`, or `sft` where there is none; `preferences` those that it is fused
    with, by default all that are not SFT; `twin` the dense twin of `sft`, by default `sft` beside `sft-l1`.

    Raises:
        PaftError: the folder is missing or holds nothing to diagnose; a name is no branch's; no name says which branch is SFT.
    """
    for module in iter_modules(signatures.__path__):
        import_module(f"{signatures.__name__}.{module.name}")  # registers its check, the first time
    facts = read_facts(folder)
    sft, preferences, twin = _roles(facts, sft, preferences, twin)
    checks = [check(facts, sft, twin) for check in in_order(BRANCH_CHECKS)]
    excuse = next((check.signature for check in checks if check.found), None)
    checks += [check(facts, sft, preference, excuse) for preference in preferences for check in in_order(PAIR_CHECKS)]
    return Diagnosis(str(folder), sft, preferences, twin, tuple(checks))


def _roles(
    facts: Facts, sft: str | None, preferences: tuple[str, ...], twin: str | None
) -> tuple[str, tuple[str, ...], str | None]:
    """The SFT branch, the preference branches and the dense twin, given or found."""
    there = ", ".join(facts.branches)
    given: dict[str, tuple[str | None, ...]] = {"--sft": (sft,), "--preference": preferences, "--twin": (twin,)}
    strangers = [
        f"{option} {name}: no such branch in {facts.folder}. There are {there}."
        for option, names in given.items()
        for name in names
        if name is not None and name not in facts.branches
    ]
    if strangers:
        raise PaftError(strangers)
    if sft is None:
        trained = [arm for arm in facts.branches.values() if arm.is_sft]
        # What is fused is the sparse one, if there is one.
        sft = next((arm.name for arm in sorted(trained, key=lambda arm: not arm.penalised)), None)
    if sft is None:
        raise PaftError(f"{facts.folder}: its branches are {there}; say with --sft which one was trained by SFT.")
    if twin is None and facts.branches[sft].twin in facts.branches:
        twin = facts.branches[sft].twin
    others = tuple(name for name, arm in facts.branches.items() if arm.role == "preference" and name not in (sft, twin))
    return sft, preferences or others, twin
