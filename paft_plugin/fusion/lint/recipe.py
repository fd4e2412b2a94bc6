"""A recipe as the checks see it: its models with their parameters in every scope, and their branches on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration, OutputSliceDefinition
from mergekit.merge_methods import MergeMethod, registered_methods
from mergekit.merge_methods.base import BasePolicy, MergeMethodSpec

from paft_plugin.deltas.belongs import branch_findings
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.quantised import quantised
from paft_plugin.deltas.store import TensorStore, is_adapter, open_model
from paft_plugin.errors import PaftError
from paft_plugin.fusion.lint.document import Document
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.schema import Keys


def exists(text: str) -> bool:
    """Whether something of this name is on this disk; a text that can be no path is not."""
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False


Scope = tuple[Keys, dict[str, Any]]
"""Where a mapping of parameters stands, and what it holds."""


@dataclass(frozen=True)
class MergeInput:
    """One model of a merge."""

    keys: Keys
    reference: ModelReference
    parameters: Scope

    @property
    def folder(self) -> Path:
        """What makes it a branch: its adapter, or else the model itself."""
        return Path((self.reference.lora or self.reference.model).path)


@dataclass(frozen=True)
class Group:
    """Models that are merged with each other: all of the recipe's, or those of one slice."""

    keys: Keys
    entries: tuple[MergeInput, ...]
    base: ModelReference | None
    shared: tuple[Scope, ...]
    """Parameters for all of them, the nearest first."""
    pair: bool
    """Whether base_model is only the first of two models, as slerp wants it."""

    @property
    def branches(self) -> tuple[MergeInput, ...]:
        """The models that are not the base model."""
        return tuple(entry for entry in self.entries if self.pair or entry.reference != self.base)


@dataclass(frozen=True)
class SoundRecipe:
    """A recipe whose structure is sound, with a method that is known."""

    document: Document
    config: MergeConfiguration
    method: MergeMethod

    @property
    def spec(self) -> MergeMethodSpec:
        """mergekit's own description of the method."""
        return self.method.spec

    def finding(self, rule: Rule, keys: Keys, message: str, fix: str) -> Finding:
        """A finding at a place in the recipe."""
        return self.document.finding(rule, keys, message, fix)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every set of models that are merged with each other."""
        return tuple(self._groups())

    @cached_property
    def scopes(self) -> tuple[tuple[Scope, bool], ...]:
        """Every mapping of parameters once, and whether it stands under one model."""
        found: dict[Keys, tuple[Scope, bool]] = {}
        for group in self.groups:
            found |= {scope[0]: (scope, False) for scope in group.shared}
            found |= {entry.parameters[0]: (entry.parameters, True) for entry in group.entries}
        return tuple(found.values())

    @cached_property
    def references(self) -> tuple[tuple[Keys, ModelReference], ...]:
        """Every model that the recipe names, with where it does."""
        named = [(entry.keys, entry.reference) for group in self.groups for entry in group.entries]
        if self.config.base_model is not None:
            named.insert(0, (("base_model",), self.config.base_model))
        return tuple(named)

    @cached_property
    def pretrained(self) -> Path | None:
        """Folder of the model that the branches' deltas are taken from, if the recipe tells and it is here."""
        if self.config.slices or self.config.modules:
            return None
        base = self.config.base_model
        adapted = {reference.model.path for _, reference in self.references if reference.lora}
        if base is not None and base.lora is None and self.spec.name != "slerp":
            path = base.model.path
        elif len(adapted) == 1:
            path = adapted.pop()
        else:
            return None
        return Path(path) if exists(path) and not is_adapter(Path(path)) else None

    @cached_property
    def base(self) -> TensorStore | None:
        """The open base model; None where there is none here, or no delta can be taken from it."""
        try:
            store = open_model(self.pretrained) if self.pretrained is not None else None
            return None if store is None or quantised(store) else store
        except PaftError:
            return None

    @cached_property
    def deltas(self) -> dict[int, Delta]:
        """Position among the first group's branches → its delta, for those that can be opened and belong to the base."""
        found: dict[int, Delta] = {}
        if self.base is None:
            return found
        for index, entry in enumerate(self.groups[0].branches):
            folder, lora = entry.folder, entry.reference.lora
            if not folder.is_dir() or folder == self.pretrained or bool(lora) != is_adapter(folder):
                continue
            if lora and not same_folder(Path(entry.reference.model.path), self.base.folder):
                continue
            if not branch_findings(self.base, folder).problems:
                found[index] = delta_of(self.base, folder)
        return found

    def _groups(self) -> Iterator[Group]:
        content, config = self.document.content, self.config
        top = _scope(content, ())
        if config.models:
            yield self._of_models(("models",), content["models"], config.models, config.base_model, (top,))
        for index, one in enumerate(config.slices or []):
            yield self._of_slice(("slices", index), content["slices"][index], one, (top,))
        for name, module in (config.modules or {}).items():
            raw, keys = content["modules"][name], ("modules", name)
            shared = (_scope(raw, keys), top)
            if module.models:
                yield self._of_models((*keys, "models"), raw["models"], module.models, config.base_model, shared)
            for index, one in enumerate(module.slices or []):
                yield self._of_slice((*keys, "slices", index), raw["slices"][index], one, shared)

    def _of_models(
        self, keys: Keys, raw: list[Any], parsed: list[Any], base: ModelReference | None, shared: tuple[Scope, ...]
    ) -> Group:
        entries = tuple(
            MergeInput((*keys, index), one.model, _scope(raw[index], (*keys, index)))
            for index, one in enumerate(parsed)
        )
        return Group(keys, entries, base, shared, pair=self.spec.name == "slerp")

    def _of_slice(
        self, keys: Keys, raw: dict[str, Any], one: OutputSliceDefinition, shared: tuple[Scope, ...]
    ) -> Group:
        base = one.base_model or self.config.base_model
        return self._of_models((*keys, "sources"), raw["sources"], one.sources, base, (_scope(raw, keys), *shared))


Check = Callable[[SoundRecipe], Iterator[Finding]]
RECIPE_CHECKS: list[Check] = []
"""They read the recipe, and of the folders only headers and small files."""
WEIGHT_CHECKS: list[Check] = []
"""They read weights, outside of the survey of the deltas."""


def recipe_check(check: Check) -> Check:
    """Enter a check into `RECIPE_CHECKS`."""
    RECIPE_CHECKS.append(check)
    return check


def weight_check(check: Check) -> Check:
    """Enter a check into `WEIGHT_CHECKS`."""
    WEIGHT_CHECKS.append(check)
    return check


def method_named(name: str) -> MergeMethod | None:
    """mergekit's method of this name."""
    return next((method for method in registered_methods() if method.spec.name == name), None)


def base_is_merged(spec: MergeMethodSpec) -> bool:
    """Whether the method sees no difference between the base and any other model."""
    return spec.contract.base == BasePolicy.IGNORED


def same_folder(one: Path, other: Path) -> bool:
    """Whether two paths are one folder, or two folders with the same weights."""
    if one.resolve() == other.resolve():
        return True
    try:
        return open_model(one).fingerprint == open_model(other).fingerprint
    except PaftError:
        return False


def _scope(raw: dict[str, Any], keys: Keys) -> Scope:
    return (*keys, "parameters"), raw.get("parameters") or {}
