"""How a branch lies on its base: which factors are stored transposed, which tensors grew, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from paft_plugin.deltas.adapter import Adapter
from paft_plugin.deltas.changes import Change, FullCopy, LowRank, TokenRows
from paft_plugin.deltas.layout import Names, lay
from paft_plugin.deltas.skeleton import Place, open_skeleton
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
    changes: dict[str, list[Change]] = field(default_factory=dict)
    """Base tensor → the summands of an adapter's δ on it."""
    sources: dict[str, tuple[str, Place]] = field(default_factory=dict)
    """Base tensor → the tensor of a whole model that stands for it, and what of that."""
    grown: dict[str, int] = field(default_factory=dict)
    """Tensor → rows that the branch added to the base's."""
    problems: list[str] = field(default_factory=list)
    """What does not fit, in full sentences."""


def fit_adapter(base: TensorStore, adapter: Adapter) -> Fit:
    """Lay an adapter on a base; reads headers only (and the two copies of a tied pair)."""
    names = Names(base)
    layout, tied = lay(names, adapter), names.tied
    fit = Fit(problems=list(layout.problems))
    if layout.absent:
        fit.problems.append(
            f"{adapter.folder}: it adapts {some(sorted(layout.absent))}, which {base.folder} does not have. "
            "Give the base model that this adapter was trained on."
        )
    if tied:
        fit.problems += _tied_problems(base, adapter, tied, layout.changes)
        layout.changes.pop(tied[1], None)
    fit.names = sorted(layout.changes)
    for name in fit.names:
        _fit_tensor(fit, base, adapter, name, layout.changes[name])
    return fit


def fit_model(base: TensorStore, branch: TensorStore) -> Fit:
    """Lay a whole model on a base; reads headers only (and the two copies of a tied pair)."""
    names, others = _own_names(base), _own_names(branch)
    sources = {name: (name, Place(name)) for name in names & others}
    if names != others and (by_place := _sources_by_place(base, branch, names, others)):
        names, others, sources = by_place
    fit = Fit(names=sorted(sources), sources=sources)
    way_out = f"Give a model that was trained from {base.folder}, without a resized vocabulary or other architecture."
    found = {source for source, _ in sources.values()}
    for absent, here, there in ((names - set(sources), base, branch), (others - found, branch, base)):
        if absent:
            fit.problems.append(f"{there.folder}: has no {some(sorted(absent))}, which {here.folder} has. {way_out}")
    shapes = {name: place.cut_shape(branch.shape(source)) for name, (source, place) in sources.items()}
    misfits = [name for name in fit.names if base.shape(name) != shapes[name]]
    if misfits:
        first = misfits[0]
        fit.problems.append(
            f"{branch.folder}: {some(misfits)} differ in shape from the base's "
            f"({first}: {shapes[first]} against {base.shape(first)}). {way_out}"
        )
    fit.problems += quantised(branch)
    return fit


def _sources_by_place(
    base: TensorStore, branch: TensorStore, names: set[str], others: set[str]
) -> tuple[set[str], set[str], dict[str, tuple[str, Place]]] | None:
    """What `fit_model` compares, where the two folders name or fuse their tensors differently; None if transformers can't tell.

    Old buffers, which no model loads any more, drop out.
    """
    ours, theirs = open_skeleton(base), open_skeleton(branch)
    if isinstance(ours, str) or isinstance(theirs, str):
        return None
    names, others = names & ours.places.keys(), others & theirs.places.keys()
    there = {theirs.places[name]: name for name in others}
    sources = {}
    for name in names:
        place = ours.places[name]
        if place in there:
            sources[name] = (there[place], Place(place.parameter))
        elif (whole := Place(place.parameter)) in there:  # the branch holds fused what the base holds expert by expert
            sources[name] = (there[whole], place)
    return names, others, sources


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


def _fit_tensor(fit: Fit, base: TensorStore, adapter: Adapter, name: str, changes: list[Change]) -> None:
    """Enter one tensor's changes and growth, or the problem that a shape is."""
    fit.changes[name] = changes
    wanted = base.shape(name)
    for change in changes:
        shape = change.shape(adapter)
        if isinstance(change, LowRank) and change.transposed:
            fit.transposed.add(change.module)
        may_grow = name.endswith(VOCABULARY) and shape[1:] == wanted[1:] and shape[0] > wanted[0]
        if may_grow:
            fit.grown[name] = max(shape[0] - wanted[0], fit.grown.get(name, 0))
        elif shape != wanted:
            fit.problems.append(
                f"{adapter.folder}: its change of {name} has shape {shape}, the base's tensor {wanted}. "
                "Give the base model that this adapter was trained on."
            )
            return


def _tied_problems(
    base: TensorStore, adapter: Adapter, tied: tuple[str, str], changes: dict[str, list[Change]]
) -> list[str]:
    """A tied base has one tensor for embedding and head: only a change that is the same for both is a delta of it."""
    embedding, head = (changes.get(name, []) for name in tied)
    # PEFT ties the rows of single tokens by itself, and saves them under the embedding.
    if not head and all(isinstance(change, TokenRows) for change in embedding):
        return []
    if len(embedding) == len(head) and all(any(_same(adapter, one, other) for other in head) for one in embedding):
        return []
    changed = [name for name in tied if changes.get(name)]
    return [
        f"{adapter.folder}: changes {' and '.join(changed)}, but {base.folder} ties {tied[0]} to {tied[1]}, "
        "so a merged model cannot hold this change. Retrain without them among the target modules, "
        "or with both of them and `peft_ensure_weight_tying: true`."
    ]


def _same(adapter: Adapter, one: Change, other: Change) -> bool:
    """Whether a change of the embedding and one of the head are the same, as `ensure_weight_tying` makes them."""
    if isinstance(one, FullCopy) and isinstance(other, FullCopy):
        return torch.equal(adapter.store.tensor(one.key), adapter.store.tensor(other.key))
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        ours, theirs = adapter.factors[one.module], adapter.factors[other.module]
        A, B = adapter.store.tensor(ours.A), adapter.store.tensor(ours.B)
        same = torch.equal(A.T, adapter.store.tensor(theirs.B)) and torch.equal(B.T, adapter.store.tensor(theirs.A))
        return same and adapter.scale(one.module) == adapter.scale(other.module)
    return False
