"""How a branch lies on its base: which factors are stored transposed, which tensors grew, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from paft_plugin.deltas.adapter import Adapter
from paft_plugin.deltas.store import FLOATS, INPUT_EMBEDDINGS, OUTPUT_HEADS, TensorStore, tied_names
from paft_plugin.errors import some

VOCABULARY = INPUT_EMBEDDINGS + OUTPUT_HEADS
# Buffers that old checkpoints hold and new ones don't; nothing is trained in them.
BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@dataclass
class Fit:
    """A branch laid on its base."""

    names: list[str] = field(default_factory=list)
    """Base tensors that the branch can change, sorted; of two tied ones the embedding alone."""
    transposed: set[str] = field(default_factory=set)
    """Modules whose weight is (B·A)ᵀ: embeddings, and the Conv1D layers of GPT-2 (`fan_in_fan_out`)."""
    grown: dict[str, int] = field(default_factory=dict)
    """Tensor → rows that the branch added to the base's."""
    problems: list[str] = field(default_factory=list)
    """What does not fit, in full sentences."""


def fit_adapter(base: TensorStore, adapter: Adapter) -> Fit:
    """Lay an adapter on a base; reads headers only (and the two copies of a tied pair)."""
    fit = Fit()
    tied = tied_names(base)
    known = [name for name in adapter.names if name in base or (tied and name == tied[1])]
    absent = sorted(set(adapter.names) - set(known))
    if absent:
        fit.problems.append(
            f"{adapter.folder}: it adapts {some(absent)}, which {base.folder} does not have. "
            "Give the base model that this adapter was trained on."
        )
    fit.names = [name for name in known if not (tied and name == tied[1])]
    if tied:
        fit.problems += _tied_problems(base, adapter, tied)
    conv1d = _is_conv1d(base, adapter)
    for name in fit.names:
        _fit_tensor(fit, base, adapter, name, conv1d)
    return fit


def fit_model(base: TensorStore, branch: TensorStore) -> Fit:
    """Lay a whole model on a base; reads headers only."""
    names, others = _own_names(base), _own_names(branch)
    fit = Fit(names=sorted(names & others))
    way_out = f"Give a model that was trained from {base.folder}, without a resized vocabulary or other architecture."
    for absent, here, there in ((names - others, base, branch), (others - names, branch, base)):
        if absent:
            fit.problems.append(f"{there.folder}: has no {some(sorted(absent))}, which {here.folder} has. {way_out}")
    shapes = [name for name in fit.names if base.shape(name) != branch.shape(name)]
    if shapes:
        first = shapes[0]
        fit.problems.append(
            f"{branch.folder}: {some(shapes)} differ in shape from the base's "
            f"({first}: {branch.shape(first)} against {base.shape(first)}). {way_out}"
        )
    fit.problems += quantised(branch)
    return fit


def quantised(store: TensorStore) -> list[str]:
    """A problem if a model's weights are stored in a dtype of which no delta can be taken."""
    if store.main_dtype in FLOATS:
        return []
    return [
        f"{store.folder}: its weights are stored as {store.main_dtype} (quantised), so no delta can be taken. "
        "Give the unquantised model (bf16, fp16 or fp32)."
    ]


def _own_names(store: TensorStore) -> set[str]:
    tied = tied_names(store)
    return {name for name in store.names if not name.endswith(BUFFERS) and not (tied and name == tied[1])}


def _is_conv1d(base: TensorStore, adapter: Adapter) -> bool:
    """Whether the base stores its linear weights as ``(I, O)``: by shape where that tells, else by the adapter's config.

    PEFT writes the flag of the *last* module it adapted, which can be a plain head on a Conv1D model.
    """
    for module, factors in adapter.factors.items():
        name, product = f"{module}.weight", adapter.shape(module)
        tells = not factors.embedding and name in base and product[0] != product[1]
        if tells and base.shape(name) == product[::-1]:
            return True
    return bool(adapter.config.get("fan_in_fan_out"))


def _fit_tensor(fit: Fit, base: TensorStore, adapter: Adapter, name: str, conv1d: bool) -> None:
    """Enter one tensor's orientation and growth, or the problem that its shape is."""
    module, _, part = name.rpartition(".")
    wanted = base.shape(name)
    shapes = [adapter.store.shape(adapter.copies[name])] if name in adapter.copies else []
    factors = adapter.factors.get(module)
    if factors and part == "weight":
        shape = adapter.shape(module)
        square = shape[0] == shape[1]
        if factors.embedding or (square and conv1d) or (not square and shape == wanted[::-1]):
            fit.transposed.add(module)
            shape = shape[::-1]
        shapes.append(shape)
    elif factors and factors.bias:
        shapes.append(adapter.store.shape(factors.bias))
    for shape in shapes:
        may_grow = name.endswith(VOCABULARY) and shape[1:] == wanted[1:] and shape[0] > wanted[0]
        if may_grow:
            fit.grown[name] = shape[0] - wanted[0]
        elif shape != wanted:
            fit.problems.append(
                f"{adapter.folder}: its change of {name} has shape {shape}, the base's tensor {wanted}. "
                "Give the base model that this adapter was trained on."
            )
            return


def _tied_problems(base: TensorStore, adapter: Adapter, tied: tuple[str, str]) -> list[str]:
    """A tied base has one tensor for embedding and head: only a change that is the same for both is a delta of it."""
    changed = [name for name in tied if name in adapter.names]
    if not changed:
        return []
    as_copies = all(name in adapter.copies and name.rpartition(".")[0] not in adapter.factors for name in tied)
    if as_copies:
        embedding, head = (adapter.store.tensor(adapter.copies[name]) for name in tied)
        if torch.equal(embedding, head):
            return []
    return [
        f"{adapter.folder}: changes {' and '.join(changed)}, but {base.folder} ties {tied[0]} to {tied[1]}, "
        "so a merged model cannot hold this change. Retrain without them among the target modules, "
        "or save both with `lora_modules_to_save` and `ensure_weight_tying`."
    ]
