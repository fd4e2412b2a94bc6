"""mergekit's merge methods with the fast selection in the place of its sorting, for one merge or one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mergekit import merge_methods, sparsify
from mergekit.merge_methods.base import BasePolicy
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge import selection

REPLACED = ("magnitude", "magnitude_outliers", "bernoulli", "della_magprune")


@contextmanager
def fast_selection() -> Iterator[None]:
    """For the time of the context mergekit's methods trim with `selection`'s functions: the same outcome, sooner."""
    before = {name: getattr(sparsify, name) for name in REPLACED}
    for name in REPLACED:
        setattr(sparsify, name, getattr(selection, name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(sparsify, name, function)


def fuse_tensors(method: str, parameters: Mapping[str, Any], base: Tensor, branches: Sequence[Tensor]) -> Tensor:
    """One tensor fused from a base and its branches, as mergekit fuses it.

    A method that takes no base (linear, karcher) gets the branches alone. One that goes from a base to a single other
    model (slerp, nearswap, arcee_fusion) goes from the first branch to the second, if there are two. Random methods draw
    from torch's global generator.

    Args:
        method: As mergekit calls it.
        parameters: By mergekit's names; those of the inputs as a number for all of them, or as a list in the branches' order.
        base: θ_pre's tensor, any shape. In fp32, as in a recipe with ``dtype: float32``; the result has the inputs' dtype.
        branches: The branches' tensors (not their deltas), in the base's shape.

    Raises:
        PaftError: No such method, or parameters or inputs that it does not take.
    """
    try:
        contract = merge_methods.get(method).spec.contract
        pair = contract.max_inputs == 2 and len(branches) == 2
        with_base = contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL) and not pair
        inputs = [base, *branches] if with_base else list(branches)
        with fast_selection(), torch.no_grad():
            return merge_methods.merge_tensors(
                inputs, method, parameters=parameters, base_index=0 if with_base or pair else None
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise PaftError(f"{method}: {error}. Correct the parameters, or take another method.") from error
