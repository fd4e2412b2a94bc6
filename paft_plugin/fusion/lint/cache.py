"""Checks for plain `mergekit-yaml`, which writes each adapter out as a whole model and finds it again by its path alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergekit.common import ModelReference

from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.store import FLOATS, TensorStore, is_adapter, open_model
from paft_plugin.errors import PaftError
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.lint.recipe import SoundRecipe, recipe_check, weight_check
from paft_plugin.fusion.merge.global_trim import TIES_GLOBAL
from paft_plugin.fusion.mergekit_internals import name_in_cache
from paft_plugin.fusion.recipe.render import CACHE, DTYPE
from paft_plugin.schema import Keys

TENSORS = 4
"""How many adapted tensors of a cached model are compared with the adapter: retraining changes all of them."""
TOLERANCE = {"F32": 0.01, "F64": 0.01}
"""Relative error of a cached delta that is still the same adapter; rounded to 16 bits, most of a small delta is gone."""


OWN_METHOD = Rule.warning(
    506, "own-method", "The method is one of `axolotl paft merge`'s own: mergekit-yaml does not know it, and stops."
)


@recipe_check
def own_method(recipe: SoundRecipe) -> Iterator[Finding]:
    """A merge method that mergekit itself has not."""
    if recipe.spec.name == TIES_GLOBAL:
        message = f"mergekit-yaml has no {TIES_GLOBAL}: its ties trims each tensor by itself, not the whole delta."
        yield recipe.finding(OWN_METHOD, ("merge_method",), message, "Merge with `axolotl paft merge`.")


ADAPTER_FLAGS = Rule.warning(
    501, "adapter-flags", "mergekit-yaml stops at an adapter without --lora-merge-cache for it as a model."
)
ADAPTER_ROUNDED = Rule.warning(
    502, "adapter-rounded", "Without --lora-merge-dtype float32, base + adapter is rounded to the base's dtype."
)


@recipe_check
def flags(recipe: SoundRecipe) -> Iterator[Finding]:
    """The header's command lacks a flag that an adapter needs, or there is no such command."""
    adapters = [(keys, reference) for keys, reference in recipe.references if reference.lora]
    if not adapters or recipe.spec.name == TIES_GLOBAL:
        return
    fix = f"Run `mergekit-yaml RECIPE OUT {CACHE} NEW_FOLDER {DTYPE} float32`, or `axolotl paft merge`, which needs neither."
    header = recipe.document.header
    if header is None or header.cache is None:
        has = "the header's command has none" if header else "the recipe names no command that has it"
        yield recipe.finding(ADAPTER_FLAGS, adapters[0][0], f"An adapter needs {CACHE}, and {has}.", fix)
    elif header.dtype not in ("float32", "float64"):
        yield recipe.finding(ADAPTER_ROUNDED, (), f"The header's command has no {DTYPE} float32.", fix)


CACHE_BROKEN = Rule.error(
    503, "cache-broken", "A merge that was cut off left half a model in the adapter cache; mergekit takes it as whole."
)
CACHE_ROUNDED = Rule.warning(
    505, "cache-rounded", "The adapter cache was written in a narrower dtype, and mergekit would use it as it is."
)


@recipe_check
def entries(recipe: SoundRecipe) -> Iterator[Finding]:
    """What lies in the adapter cache already: whole models that were cut off, or written in a narrow dtype."""
    for keys, folder, _ in _models_in_cache(recipe):
        try:
            dtype = open_model(folder).main_dtype
        except PaftError as error:
            message = f"Half a model in the adapter cache: {error.problems[0]}"
            yield recipe.finding(CACHE_BROKEN, keys, message, _delete(folder))
            continue
        if dtype not in ("F32", "F64"):
            message = f"{folder} holds base + adapter in {FLOATS.get(dtype, dtype)}."
            yield recipe.finding(CACHE_ROUNDED, keys, message, _delete(folder))


CACHE_STALE = Rule.error(
    504, "cache-stale", "The adapter cache holds another adapter's weights: mergekit knows it by the path alone."
)


@weight_check
def contents(recipe: SoundRecipe) -> Iterator[Finding]:
    """An adapter cache that holds the weights of another adapter."""
    for keys, folder, reference in _models_in_cache(recipe):
        assert reference.lora is not None
        base, adapter = Path(reference.model.path), Path(reference.lora.path)
        if not (base.is_dir() and adapter.is_dir() and is_adapter(adapter)):
            continue
        try:
            cached, delta = open_model(folder), delta_of(open_model(base), adapter)
        except PaftError:
            continue  # other checks say why
        if _is_other(cached, delta):
            message = f"{folder} is not {adapter} on its base: it was written before."
            yield recipe.finding(CACHE_STALE, keys, message, _delete(folder))


def _models_in_cache(recipe: SoundRecipe) -> Iterator[tuple[Keys, Path, ModelReference]]:
    header = recipe.document.header
    for keys, reference in recipe.references:
        if reference.lora and header and header.cache:
            folder = header.cache / name_in_cache(reference)
            if folder.exists():
                yield keys, folder, reference


def _is_other(cached: TensorStore, delta: Delta) -> bool:
    """Whether a cached model differs from base + adapter by more than rounding, in most of a few tensors."""
    names = [name for name in delta.names if name in cached and cached.shape(name) == delta.base.shape(name)]
    step = max(1, len(names) // TENSORS)
    seen = names[::step]
    wrong = 0
    for name in seen:
        change = delta.one(name)
        there = cached.tensor(name).float() - delta.base.tensor(name).float()
        wrong += bool((there - change).norm() > TOLERANCE.get(cached.main_dtype, 0.95) * change.norm())
    return 2 * wrong > len(seen)


def _delete(folder: Path) -> str:
    return f"Delete {folder}; mergekit writes it anew."
