"""Checks of how the models, parameters and dtypes of a recipe go together, whatever the folders hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from mergekit.common import dtype_from_name
from mergekit.merge_methods.base import BasePolicy
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.sparsify import SparsificationMethod

from paft_plugin.errors import closest
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.lint.parameters import settings, values_of
from paft_plugin.fusion.lint.recipe import Group, MergeInput, SoundRecipe, base_is_merged, recipe_check
from paft_plugin.fusion.mergekit_internals import chat_templates
from paft_plugin.schema import Keys

FLOATS = ("float32", "bfloat16", "float16", "float64")
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
DROPPING = (SparsificationMethod.random, SparsificationMethod.della_magprune, SparsificationMethod.magnitude_outliers)


WRONG_MODELS = Rule.error(
    109, "wrong-models", "The method takes another number of models, needs a base model, or got a model twice."
)
BASE_AVERAGED = Rule.error(
    110, "base-averaged", "This method knows no base model: it would average the base in as one more model, or stop."
)


@recipe_check
def models(recipe: SoundRecipe) -> Iterator[Finding]:
    """Too many models or too few, one twice, a base model that is missing or not wanted."""
    method = recipe.spec.name
    for group in recipe.groups:
        references = [entry.reference for entry in group.entries]
        is_apart = group.base is not None and group.base not in references
        if is_apart and base_is_merged(recipe.spec):
            keys = ("base_model",) if "base_model" in recipe.document.content else group.keys
            message = f"{method} knows no base model: {group.base} would be merged as one more model."
            fix = "Delete base_model. To merge deltas onto a base, take task_arithmetic or multislerp."
            yield recipe.finding(BASE_AVERAGED, keys, message, fix)
            continue
        if is_apart and group.keys[-1] == "models":
            references.append(group.base)  # as mergekit does
        try:
            recipe.method.validate_inputs(references, group.base)
        except ValueError as refusal:
            text = str(refusal)
            message = f"{method}: {text[0].lower()}{text[1:]}."
            yield recipe.finding(WRONG_MODELS, group.keys, message, _way_out(recipe, group))


UNKNOWN_DTYPE = Rule.error(
    112, "unknown-dtype", "mergekit knows float32, bfloat16, float16 and float64 by these names alone."
)


@recipe_check
def dtypes(recipe: SoundRecipe) -> Iterator[Finding]:
    """dtypes that mergekit does not know under their names."""
    for key in ("dtype", "out_dtype"):
        name = getattr(recipe.config, key)
        try:
            dtype = dtype_from_name(name)
        except RuntimeError:
            dtype = None
        if name and (dtype is None or not dtype.is_floating_point):
            match = SHORT.get(name.lower()) or closest(name, FLOATS)
            hint = f"Did you mean {match}?" if match else f"Take one of {', '.join(FLOATS)}."
            yield recipe.finding(UNKNOWN_DTYPE, (key,), f"mergekit knows no {key} {name!r} to merge in.", hint)


UNKNOWN_CHAT_TEMPLATE = Rule.error(
    111, "unknown-chat-template", "mergekit has no chat template of this name, and notices after the whole merge."
)


@recipe_check
def chat_template(recipe: SoundRecipe) -> Iterator[Finding]:
    """A chat template's name that mergekit does not have."""
    asked = recipe.config.chat_template
    if not asked or asked == "auto" or ("{" in asked and len(asked) >= 20):
        return
    shipped = chat_templates()
    if asked not in shipped:
        match = closest(asked, shipped)
        hint = f"Did you mean {match}? " if match else ""
        message = f"{asked!r} is neither the name of a template nor one itself."
        fix = f"{hint}Give auto, a Jinja template, or one of {', '.join(shipped)}."
        yield recipe.finding(UNKNOWN_CHAT_TEMPLATE, ("chat_template",), message, fix)


WITHOUT_EFFECT = Rule.warning(
    108, "without-effect", "mergekit accepts this key or parameter here, but nothing reads it."
)


@recipe_check
def idle_parameters(recipe: SoundRecipe) -> Iterator[Finding]:
    """Keys and parameters that mergekit accepts and never reads."""
    for index, one in enumerate(recipe.config.slices or []):
        if one.residual_weight is not None:
            keys: Keys = ("slices", index, "residual_weight")
            yield recipe.finding(WITHOUT_EFFECT, keys, "Nothing reads it.", "Delete it.")
    idle = {}
    method = recipe.method
    if isinstance(method, GeneralizedTaskArithmeticMerge):
        if method.sparsification_method is None:
            idle = dict.fromkeys(("density", "rescale"), f"{method.method_name} keeps every entry of a delta")
        if method.consensus_method is None:
            idle["int8_mask"] = f"{method.method_name} elects no signs"
    group = recipe.groups[0]
    if method.spec.name == "nuslerp" and all(values_of(recipe, group, None, "nuslerp_flatten")):
        idle["nuslerp_row_wise"] = "it counts only with `nuslerp_flatten: false`"
    for parameter, keys, _ in settings(recipe):
        if parameter.name in idle:
            yield recipe.finding(WITHOUT_EFFECT, keys, f"Nothing reads it: {idle[parameter.name]}.", "Delete it.")


WEIGHTS_CANCEL = Rule.error(207, "weights-cancel", "The weights add up to 0 where they are divided by their sum.")
NOTHING_MERGED = Rule.error(
    208, "nothing-merged", "Every weight, or the factor on the merged delta, is 0: the result is the base model."
)


@recipe_check
def sums(recipe: SoundRecipe) -> Iterator[Finding]:
    """Weights that add up to 0, or are all 0."""
    names = {parameter.name for parameter in recipe.spec.parameters}
    if "weight" not in names:
        return
    for group in recipe.groups:
        entries = group.entries if base_is_merged(recipe.spec) else group.branches
        weights = [values_of(recipe, group, entry, "weight") for entry in entries]
        if not entries or not all(len(values) == 1 for values in weights):
            continue  # different tensors have different weights
        flat = [values[0] for values in weights]
        divides = next((name for name in ("normalize", "normalize_weights") if name in names), None)
        divided = divides is None or any(values_of(recipe, group, None, divides))
        if not any(flat):
            yield recipe.finding(NOTHING_MERGED, group.keys, "Every weight is 0.", "Give one model a weight.")
        elif divided and abs(sum(flat)) < 1e-8:
            message = f"The weights {', '.join(f'{one:g}' for one in flat)} add up to 0, and are divided by their sum."
            fix = f"Change one{f', or write `{divides}: false`' if divides else ''}."
            yield recipe.finding(WEIGHTS_CANCEL, group.keys, message, fix)
    factors = values_of(recipe, recipe.groups[0], None, "lambda") if "lambda" in names else []
    if factors and not any(factors):
        message = "lambda is 0: the result is the base model."
        yield recipe.finding(NOTHING_MERGED, ("parameters", "lambda"), message, "Give it a value such as 1.")


NOTHING_DROPPED = Rule.warning(
    213, "nothing-dropped", "The method lives on dropping entries, and at density 1 (mergekit's default) drops none."
)
DELLA_WINDOW = Rule.error(
    214, "della-window", "DELLA needs density − epsilon and density + epsilon within (0, 1); mergekit stops otherwise."
)


@recipe_check
def drops(recipe: SoundRecipe) -> Iterator[Finding]:
    """A density of 1 where the method lives on dropping, and DELLA's window."""
    method = recipe.method
    if not isinstance(method, GeneralizedTaskArithmeticMerge) or method.sparsification_method not in DROPPING:
        return
    for group in recipe.groups:
        for entry in group.branches:
            densities = values_of(recipe, group, entry, "density")
            extra = {SparsificationMethod.magnitude_outliers: "gamma", SparsificationMethod.della_magprune: "epsilon"}
            name = extra.get(method.sparsification_method)
            others = values_of(recipe, group, entry, name) if name else []
            # Breadcrumbs without outliers is a plain trim, which density 1 leaves out for good reason.
            idle = all(density >= 1 for density in densities) and (name != "gamma" or any(others))
            if densities and idle:
                written = "density" in entry.parameters[1]
                keys = (*entry.parameters[0], "density") if written else entry.keys
                message = (
                    f"{method.method_name} drops nothing at density 1{'' if written else ', which is the default'}."
                )
                fix = "Give a density below 1, such as 0.5, or take ties or task_arithmetic."
                yield recipe.finding(NOTHING_DROPPED, keys, message, fix)
            if name == "epsilon":
                yield from _windows(recipe, entry, densities, others)


def _windows(
    recipe: SoundRecipe, entry: MergeInput, densities: list[float], epsilons: list[float]
) -> Iterator[Finding]:
    keys = (*entry.parameters[0], "density")
    if len(densities) > 1 and len(epsilons) > 1:
        return  # which of them meet in a tensor is mergekit's to say
    for density, epsilon in product(densities, epsilons):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            message = f"density {density:g} ± epsilon {epsilon:g} leaves (0, 1), and mergekit stops."
            fix = f"Give this model an epsilon below {min(density, 1 - density):.4g}."
            yield recipe.finding(DELLA_WINDOW, keys, message, fix)


def _way_out(recipe: SoundRecipe, group: Group) -> str:
    contract = recipe.spec.contract
    if len({entry.reference for entry in group.entries}) < len(group.entries):
        return "Name each model once."
    if contract.base == BasePolicy.REQUIRED and group.base is None:
        return "Add `base_model:`, the model that both branches were trained from."
    if recipe.spec.name == "slerp":
        return "slerp goes from one model to one other, one of them base_model. For two deltas on a base take nuslerp."
    if contract.max_inputs == 2:
        return "Give base_model and one other model, or take a method for more of them."
    return "Add or take away models."
