"""Which of mergekit's merges are linear in the deltas, and with which coefficients: θ = θ_pre + Σ c·δ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit.common import ModelReference
from mergekit.io.tasks import GatherTensors
from mergekit.merge_methods import get as method_called
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

# mergekit divides by a sum of weights unless it is as small as this.
NO_DIVISOR = 1e-8
# How far the coefficients of an average may be from 1 together: its rounding.
ROUNDING = 1e-6


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
        found = _sum_of_deltas(method, shared, branches)
        # What is left of the base's own delta, should an adapter be the base.
        return found and {**found, merge.base_model: 1 - sum(found.values())}
    return _average(shared, inputs) if method.spec.name == "linear" else None


def _sum_of_deltas(
    method: GeneralizedTaskArithmeticMerge, shared: Mapping[str, Any], branches: dict[ModelReference, dict[str, Any]]
) -> dict[ModelReference, float] | None:
    if method.consensus_method is not None:
        return None
    if method.sparsification_method is not None and any(values["density"] < 1 for values in branches.values()):
        return None
    together = sum(values["weight"] for values in branches.values())
    divisor = together if shared["normalize"] and abs(together) >= NO_DIVISOR else 1.0
    return {model: shared["lambda"] * values["weight"] / divisor for model, values in branches.items()}


def _average(
    shared: Mapping[str, Any], inputs: dict[ModelReference, dict[str, Any]]
) -> dict[ModelReference, float] | None:
    together = sum(values["weight"] for values in inputs.values())
    divisor = together if shared["normalize"] else 1.0
    if divisor == 0 or abs(together / divisor - 1) > ROUNDING:
        return None
    return {model: values["weight"] / divisor for model, values in inputs.items()}
