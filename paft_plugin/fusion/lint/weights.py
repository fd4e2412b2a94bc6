"""Checks of what a method makes of these very deltas; each takes the survey of all tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.sparsify import SparsificationMethod

from paft_plugin.deltas.belongs import check_finite
from paft_plugin.deltas.containment import APART, inside
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.lint.folders import not_finite
from paft_plugin.fusion.lint.recipe import MergeInput, SoundRecipe
from paft_plugin.fusion.lint.survey import NARROW, Look, TensorFacts
from paft_plugin.schema import Keys

ALONE = 0.75
"""Share of the changed entries that one branch alone changes, above which weights under normalize do next to nothing."""
SPARSE = 0.25
"""Share of non-zeros in a row, below which DELLA's ranks hardly differ between them."""
STILL = 0.1
"""How far of the way to the mean delta Model Stock must go, for its result to be more than the base."""
UNIFORM = 1e-6
"""Mean square below which SCE weighs all branches alike (in mergekit's code)."""

Facts = Sequence[TensorFacts]
DeltaCheck = Callable[[SoundRecipe, Facts], Iterator[Finding]]
DELTA_CHECKS: list[DeltaCheck] = []
"""They take the survey of all tensors that the branches change."""


def delta_check(check: DeltaCheck) -> DeltaCheck:
    """Enter a check into `DELTA_CHECKS`."""
    DELTA_CHECKS.append(check)
    return check


ZERO_DELTA = Rule.warning(410, "zero-delta", "A branch equals the base: it adds nothing to the merge.")


@delta_check
def zero(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """A branch that equals the base."""
    for index, entry in branches(recipe):
        if all(fact.looks[index].absolute == 0 and fact.looks[index].finite for fact in facts):
            message = f"{entry.folder.name} equals the base model: its delta is 0."
            fix = "Check that it was trained, and that it is the folder you mean."
            yield recipe.finding(ZERO_DELTA, entry.keys, message, fix)


@delta_check
def finite(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """NaN or infinity in a whole model, or in the product of an adapter's factors (its file is looked at without the base)."""
    for index, entry in branches(recipe):
        broken = [fact.name for fact in facts if not fact.looks[index].finite]
        if broken and not (entry.reference.lora and check_finite(entry.folder)):
            yield not_finite(recipe, entry, broken)


CONTINUED = Rule.warning(
    430,
    "continued-branch",
    "One branch continued another one's training: its delta holds that one's, which counts twice.",
)


@delta_check
def continued(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """A branch whose delta holds another one's."""
    entries = dict(branches(recipe))
    for one, other in combinations(entries, 2):
        looks = [(fact.dots[one, other], fact.looks[one].square, fact.looks[other].square) for fact in facts]
        # The same folder given twice is another mistake.
        if entries[one].folder != entries[other].folder and (found := inside(looks)):
            inner, outer = (entries[index] for index in ((one, other) if found[0] else (other, one)))
            message = found[1].sentence(inner.folder.name, outer.folder.name)
            fix = f"Use {outer.folder.name} alone. {APART.format(outer.folder.name, inner.folder.name)}"
            yield recipe.finding(CONTINUED, outer.keys, message, fix)


DTYPE_ROUNDS = Rule.warning(
    316, "dtype-rounds", "A dtype narrower than a branch: base + δ is rounded before the delta is taken."
)


@delta_check
def rounding(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """A recipe's dtype that is narrower than a branch."""
    if recipe.config.dtype not in NARROW:
        return
    for index, entry in branches(recipe):
        delta = recipe.deltas[index]
        if delta.kind == "model" and recipe.base is not None and recipe.base.main_dtype != "F32":
            continue  # rounded already where it was saved
        square = sum(fact.looks[index].square for fact in facts)
        lost = math.sqrt(sum(fact.looks[index].lost for fact in facts) / square) if square else 0.0
        dtype, fix = recipe.config.dtype, "Write `dtype: float32`, and the base's own dtype as out_dtype."
        message = f"{entry.folder.name} on its base is rounded to {dtype} first: {lost:.0%} error in its delta."
        yield recipe.finding(DTYPE_ROUNDS, ("dtype",), message, fix)


WEIGHTS_IDLE = Rule.warning(
    402, "weights-idle", "With normalize, an entry that one branch alone changes is divided by its own weight."
)


@delta_check
def idle_weights(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """Weights without effect: `normalize` divides by them where a single branch changes an entry."""
    method = recipe.method
    if not isinstance(method, GeneralizedTaskArithmeticMerge) or method.consensus_method is None:
        return
    divided = [fact for fact in facts if fact.shared["normalize"] and fact.changed]
    weights = [[look.parameters["weight"] for look in fact.looks.values()] for fact in divided]
    if len(recipe.deltas) < 2 or all(weight == 1 for own in weights for weight in own):
        return
    place: Keys = ("parameters", "normalize") if "parameters" in recipe.document.content else ()
    fix = "Write `normalize: false`, or change densities instead of weights."
    if not all(any(own) for own in weights):
        return  # weights that keep a tensor as it is
    if all(len(set(own)) == 1 for own in weights):
        message = "The weights are the same for all models, and normalize divides by them: they do nothing."
        yield recipe.finding(WEIGHTS_IDLE, place, message, fix)
        return
    changed = sum(fact.changed for fact in divided)
    alone = sum(fact.alone * fact.changed for fact in divided) / changed if changed else 0.0
    if alone >= ALONE:
        message = (
            f"One branch alone changes {alone:.0%} of the changed entries, and normalize divides each by its own weight: "
            "the weights do nothing there."
        )
        yield recipe.finding(WEIGHTS_IDLE, place, message, fix)


TRIMS_NOTHING = Rule.warning(
    403, "trims-nothing", "density counts all entries: a delta with fewer non-zeros keeps every one of them."
)


@delta_check
def trims_nothing(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """A density that keeps every non-zero entry."""
    for index, entry in branches(recipe, SparsificationMethod.magnitude, SparsificationMethod.magnitude_outliers):
        looks = [fact.looks[index] for fact in facts if fact.looks[index].nonzero]
        idle = looks and all(look.nonzero <= look.parameters["density"] < 1 for look in looks)
        if idle and not any(look.parameters.get("gamma") for look in looks):
            share = f"{_share_of_nonzeros(facts, index):.2g}"
            densities = " or ".join(f"{one:g}" for one in sorted({look.parameters["density"] for look in looks}))
            message = f"density {densities} trims nothing of {entry.folder.name}: {share} of its entries are not 0."
            fix = f"Give a density below {share} to trim it, or 1 to save the sorting."
            yield recipe.finding(TRIMS_NOTHING, (*entry.keys, "parameters", "density"), message, fix)


BREADCRUMBS_ZEROES = Rule.error(
    404, "breadcrumbs-zeroes", "gamma counts all entries: it takes every non-zero entry of so sparse a delta."
)
BREADCRUMBS_GUTS = Rule.warning(
    405, "breadcrumbs-guts", "gamma counts all entries: it takes at least half of the non-zero entries of a delta."
)


@delta_check
def breadcrumbs(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """A `gamma` of Breadcrumbs that takes most of a sparse delta for outliers."""
    for index, entry in branches(recipe, SparsificationMethod.magnitude_outliers):
        nonzero = removed = 0.0
        for fact in facts:
            look = fact.looks[index]
            count = look.nonzero * fact.entries
            nonzero += count
            if look.parameters["density"] < 1:
                removed += min(count, int(look.parameters["gamma"] * fact.entries))
        share = removed / nonzero if nonzero else 0.0
        if share >= 0.5:
            rule, nonzeros = BREADCRUMBS_ZEROES if share > 0.999 else BREADCRUMBS_GUTS, _share_of_nonzeros(facts, index)
            message = f"gamma takes {share:.0%} of the non-zero entries of {entry.folder.name}, the largest first."
            fix = f"Give this model `gamma: 0`, or one far below its share of non-zeros, {nonzeros:.2g}."
            yield recipe.finding(rule, entry.keys, message, fix)


DELLA_RANKS_ZEROS = Rule.warning(
    406, "della-ranks-zeros", "DELLA ranks zeros too: the non-zeros of a sparse delta all rank alike, as in DARE."
)


@delta_check
def della(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """Deltas so sparse that DELLA's ranks do not tell large entries from small ones."""
    for index, entry in branches(recipe, SparsificationMethod.della_magprune):
        share = _share_of_nonzeros(facts, index)
        used = [fact.looks[index] for fact in facts if fact.looks[index].nonzero]
        if used and share < SPARSE and any(_is_spread(look) for look in used):
            density, epsilon = used[0].parameters["density"], used[0].parameters["epsilon"]
            message = (
                f"Only {share:.2g} of {entry.folder.name} is not 0, so DELLA keeps all of that with nearly the same chance, "
                f"about {density + epsilon * (1 - share):.2f}."
            )
            fix = "Take dare_ties or dare_linear with that density: the same, and it says so."
            yield recipe.finding(DELLA_RANKS_ZEROS, entry.keys, message, fix)


SCE_UNIFORM = Rule.warning(
    407, "sce-uniform", "SCE weighs branches equally where their mean squares add up to less than 1e-6."
)


@delta_check
def sce(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """Deltas so small that SCE gives all of them the same weight."""
    if recipe.spec.name != "sce":
        return
    energies = [sum(look.square for look in fact.looks.values()) / fact.entries for fact in facts]
    energies = [energy for energy in energies if energy]
    if energies and sum(energy < UNIFORM for energy in energies) > 0.9 * len(energies):
        message = (
            f"These deltas are too small for sce to weigh (mean square up to {max(energies):.1g}): it takes all alike."
        )
        fix = "That is ties at density 1 with normalize; take it, with a density of your own."
        yield recipe.finding(SCE_UNIFORM, ("merge_method",), message, fix)


STOCK_RETURNS_BASE = Rule.warning(
    408, "stock-returns-base", "Model Stock goes by the angle of the deltas: at a right angle it stays at the base."
)


@delta_check
def model_stock(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """Deltas at right angles to each other, of which Model Stock makes the base again."""
    count = len(recipe.deltas)
    if recipe.spec.name != "model_stock" or count < 2 or count != len(recipe.groups[0].branches):
        return
    moved = whole = 0.0
    for fact in facts:
        squares = {index: look.square for index, look in fact.looks.items()}
        cosines = [dot / max(math.sqrt(squares[one] * squares[other]), 1e-6) for (one, other), dot in fact.dots.items()]
        cosine = sum(cosines) / len(cosines)
        step = count * cosine / (1 + (count - 1) * cosine) if cosine > -1 / count else 0.0
        mean = (sum(squares.values()) + 2 * sum(fact.dots.values())) / count**2
        moved, whole = moved + step**2 * mean, whole + mean
    share = math.sqrt(moved / whole) if whole else 0.0
    if share < STILL:
        message = f"The deltas stand at right angles, so model_stock goes only {share:.1%} of the way to their mean."
        fix = "It is for models of one task. Take ties or task_arithmetic for branches of two."
        yield recipe.finding(STOCK_RETURNS_BASE, ("merge_method",), message, fix)


RAM_DROPS = Rule.warning(409, "ram-drops", "RAM takes entries up to epsilon for unchanged; most of a delta lies below.")


@delta_check
def ram(recipe: SoundRecipe, facts: Facts) -> Iterator[Finding]:
    """An `epsilon` of RAM that is greater than most of a delta."""
    if recipe.spec.name not in ("ram", "ramplus_tl"):
        return
    for index, entry in branches(recipe):
        whole = sum(fact.looks[index].absolute for fact in facts)
        share = sum(fact.looks[index].below for fact in facts) / whole if whole else 0.0
        if share > 0.5:
            message = f"{share:.0%} of {entry.folder.name} (by L1 norm) lies up to epsilon, which counts as unchanged."
            yield recipe.finding(RAM_DROPS, entry.keys, message, "Give a smaller epsilon, such as 1e-7.")


def branches(recipe: SoundRecipe, *how: SparsificationMethod) -> Iterator[tuple[int, MergeInput]]:
    """The branches whose deltas are open; with `how`, only if the method drops entries in one of these ways."""
    method = recipe.method
    if how and not (isinstance(method, GeneralizedTaskArithmeticMerge) and method.sparsification_method in how):
        return
    for index, entry in enumerate(recipe.groups[0].branches):
        if index in recipe.deltas:
            yield index, entry


def _share_of_nonzeros(facts: Facts, index: int) -> float:
    """Share of a delta's entries that are not 0, of the tensors that it touches."""
    touched = [fact for fact in facts if fact.looks[index].nonzero]
    entries = sum(fact.entries for fact in touched)
    return sum(fact.looks[index].nonzero * fact.entries for fact in touched) / entries if entries else 0.0


def _is_spread(look: Look) -> bool:
    return bool(look.parameters["density"] < 1 and look.parameters["epsilon"] > 0)
