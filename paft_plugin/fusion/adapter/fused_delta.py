"""What a fused adapter is made of: a merge in fp32, its base, and how the change of each tensor can go into an adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.io.tasks import GatherTensors, SaveTensor
from mergekit.merge_methods import get as method_called
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.plan import MergePlanner
from torch import Tensor

from paft_plugin.deltas.adapter import Adapter, open_adapter
from paft_plugin.deltas.changes import FullCopy, LowRank, OfParameter, TokenRows
from paft_plugin.deltas.fit import VOCABULARY, Fit, fit_adapter
from paft_plugin.deltas.store import TensorStore
from paft_plugin.errors import PaftError, some
from paft_plugin.fusion.adapter.peft_model import Live, Slot, open_live
from paft_plugin.fusion.merge.fusion import Fusion
from paft_plugin.fusion.merge.loaders import AdapterLoader, ModelLoader

# mergekit divides by a sum of weights unless it is as small as this.
NO_DIVISOR = 1e-8
# How far the coefficients of an average may be from 1 together: its rounding.
ROUNDING = 1e-6


WITHOUT = "Merge without --adapter."


@dataclass(frozen=True)
class FusedDelta:
    """A merge whose result, minus its base, is to become an adapter."""

    fusion: Fusion
    """Computes in fp32 and rounds nothing: a delta of rounded tensors would be rounding above all."""
    base: ModelReference
    store: TensorStore
    """The base's."""
    live: Live

    @cached_property
    def adapters(self) -> dict[ModelReference, Adapter]:
        """The branches that are adapters on the base, opened."""
        return {
            reference: open_adapter(loader.delta.branch)
            for reference, loader in self.fusion.loaders.items()
            if isinstance(loader, AdapterLoader) and loader.store is self.store
        }

    @cached_property
    def fits(self) -> dict[ModelReference, Fit]:
        """How each of them lies on the base."""
        return {reference: fit_adapter(self.store, adapter) for reference, adapter in self.adapters.items()}

    def factors(self, reference: ModelReference, name: str) -> tuple[float, Tensor, Tensor]:
        """Scale, B and A of an adapter's change of a tensor, as its file holds them."""
        adapter, changes = self.adapters[reference], self.fits[reference].changes[name]
        module = next(change.module for change in changes if isinstance(change, LowRank))
        found = adapter.factors[module]
        return adapter.scale(module), adapter.store.tensor(found.B), adapter.store.tensor(found.A)

    def merges(self) -> list[ExecuteMergeMethodTask]:
        """The merge of each tensor, in mergekit's order; the loaders must be in place."""
        fusion = self.fusion
        planner = MergePlanner(
            fusion.config.model_copy(deep=True), fusion.architecture, fusion.options, fusion.model_config
        )
        return [task.tensor_task for task in planner.plan_to_disk(out_path="") if isinstance(task, SaveTensor)]

    def name_of(self, weight: WeightInfo) -> str | None:
        """What the base's files call a merged tensor; None if they don't hold it."""
        return next((name for name in (weight.name, *(weight.aliases or ())) if name in self.store), None)

    def is_second(self, weight: WeightInfo) -> bool:
        """Whether a merged tensor is a tied head, for which the embedding stands."""
        name = self.name_of(weight)
        if name is None:
            return any(tied in self.store for tied in weight.tied_names or ())
        return self.live.tied is not None and name == self.live.tied[1]

    def slot_of(self, name: str) -> Slot:
        """Where a changed tensor goes.

        Raises:
            PaftError: PEFT has no way to hold its change.
        """
        slot = self.live.slots.get(name)
        if slot is None:
            raise PaftError(
                f"{name}: the loaded model has it in another form, so no adapter can hold its change. {WITHOUT}"
            )
        if not slot.has_factors and any(self.live.model.get_submodule(slot.module).children()):
            raise PaftError(
                f"{name}: lies in a module with others below it, so no adapter can hold its change. {WITHOUT}"
            )
        return slot

    def is_whole(self, name: str, slot: Slot) -> bool:
        """Whether a changed tensor is put as a whole copy: where factors cannot be, and where a branch holds it so too."""
        if not slot.has_factors or (self.live.tied and name in self.live.tied):
            return True
        if any(loader.store is not self.store for loader in self.fusion.loaders.values()) and name.endswith(VOCABULARY):
            return True
        return any(self._has_copy(reference, name) for reference in self.adapters)

    def _has_copy(self, reference: ModelReference, name: str) -> bool:
        """Whether an adapter changes a tensor by a trained copy of it, or of rows.

        PEFT saves an embedding with factors along with the layer below them, which is the base's: that is no change.
        """
        own = self.adapters[reference].store
        return any(
            isinstance(change, TokenRows)
            or (isinstance(change, FullCopy) and not _equal(own, change.key, self.store, name))
            for change in self.fits[reference].changes.get(name, [])
        )

    def factorable(self, merge: ExecuteMergeMethodTask, name: str) -> dict[ModelReference, float] | None:
        """Coefficients of the adapters that change a tensor, if its merge is linear in their deltas and nothing else goes in."""
        found = coefficients(merge)
        weights = merge.gather_tensors.weight_info if found is not None else {}
        if found is None or any(weights[model].name != merge.output_weight.name for model in merge.model_order):
            return None
        changing = {
            model: c for model, c in found.items() if c and changes(self.fusion.loaders[model], name, self.store)
        }
        return changing if all(self._has_parts(model, name) for model in changing) else None

    def _has_parts(self, reference: ModelReference, name: str) -> bool:
        """Whether the change of a tensor is an adapter's, and not of a parameter that PEFT adapts without a module."""
        if reference not in self.adapters:
            return False
        return not any(isinstance(change, OfParameter) for change in self.fits[reference].changes[name])

    def delta(self, reference: ModelReference, name: str) -> Tensor:
        """An adapter's δ of one tensor, in fp32."""
        loader = self.fusion.loaders[reference]
        assert isinstance(loader, AdapterLoader)
        return loader.delta.one(name)


def open_fused_delta(fusion: Fusion) -> FusedDelta:
    """Make a recipe ready for `fused_parts`.

    Raises:
        PaftError: It has no base that an adapter could lie on, or one that transformers cannot build.
    """
    base = _base_of(fusion)
    store = next(loader.store for reference, loader in fusion.loaders.items() if reference.model == base.model)
    config = fusion.config.model_copy(update={"dtype": "float32", "out_dtype": "float32"})
    return FusedDelta(replace(fusion, config=config), base, store, open_live(store))


def changes(loader: ModelLoader, name: str, base: TensorStore) -> bool:
    """Whether a model has another tensor than the base under a name."""
    if loader.store is base:
        return loader.changes(name)
    return loader.changes(name) or name not in loader.store or not _equal(loader.store, name, base, name)


def check_planned(fused: FusedDelta, merges: list[ExecuteMergeMethodTask]) -> None:
    """Refuse adapters that change what mergekit doesn't merge: it would be lost without a word.

    Raises:
        PaftError: There are such tensors.
    """
    planned = {fused.name_of(merge.output_weight) for merge in merges} | set(fused.live.tied or ())
    for model, adapter in fused.adapters.items():
        loader = fused.fusion.loaders[model]
        lost = [name for name in fused.store.names if loader.changes(name) and name not in planned]
        if lost:
            raise PaftError(
                f"{adapter.folder}: changes {some(lost)}, which mergekit does not merge for this architecture. "
                "Retrain without these modules."
            )


def coefficients(merge: ExecuteMergeMethodTask) -> dict[ModelReference, float] | None:
    """The coefficient of each input's delta in one tensor's merge; None if the merge is not linear in the deltas.

    Linear are task_arithmetic, its relatives without sign election where their density is 1, and averages (`linear`, also
    without `normalize` if the weights add up to 1: else the base itself is scaled, which is no delta of a low rank).
    """
    # The vocabulary of tokens that are moved about first is another story.
    if not isinstance(merge.gather_tensors, GatherTensors):
        return None
    method = method_called(merge.method_name)
    shared = dict(merge.parameters.items())
    inputs = {model: dict(merge.input_parameters[model].items()) for model in merge.model_order}
    if isinstance(method, GeneralizedTaskArithmeticMerge):
        branches = {model: values for model, values in inputs.items() if model != merge.base_model}
        trims = method.sparsification_method is not None and any(one["density"] < 1 for one in branches.values())
        if trims or method.consensus_method is not None:
            return None
        together = sum(values["weight"] for values in branches.values())
        divisor = together if shared["normalize"] and abs(together) >= NO_DIVISOR else 1.0
        found = {model: shared["lambda"] * values["weight"] / divisor for model, values in branches.items()}
        # What is left of the base's own delta, should an adapter be the base.
        return {**found, merge.base_model: 1 - sum(found.values())}
    if method.spec.name != "linear":
        return None
    together = sum(values["weight"] for values in inputs.values())
    divisor = together if shared["normalize"] else 1.0
    if divisor == 0 or abs(together / divisor - 1) > ROUNDING:
        return None
    return {model: values["weight"] / divisor for model, values in inputs.items()}


def _base_of(fusion: Fusion) -> ModelReference:
    named = fusion.config.base_model
    if named is not None and named.lora is None:
        return named
    bases = {reference.model_copy(update={"lora": None}) for reference in fusion.loaders if reference.lora}
    if len(bases) == 1:
        return bases.pop()
    raise PaftError(
        f"{fusion.recipe}: names no one base model that an adapter could lie on. Take a method with a base_model "
        f"(task_arithmetic with weights that add up to 1 is an average), or merge without --adapter."
    )


def _equal(one: TensorStore, key: str, other: TensorStore, name: str) -> bool:
    if one.shape(key) != other.shape(name):
        return False
    return torch.equal(one.tensor(key).float(), other.tensor(name).float())
