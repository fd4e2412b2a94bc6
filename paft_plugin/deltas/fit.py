"""How a branch lies on its base: which base tensors each part of it changes, under the names of the base's files.

An adapter calls tensors as PEFT does, which need not be as the base's files do, and may store factors transposed (`_lay`); either
kind of branch may have more rows, or shapes that do not fit (`fit_adapter`, `fit_model`).
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import torch

from paft_plugin.deltas.adapter import Adapter, Factors
from paft_plugin.deltas.changes import Change, FullCopy, LowRank, OfBias, OfParameter, TokenRows
from paft_plugin.deltas.quantised import quantised
from paft_plugin.deltas.skeleton import ParameterPlace, Skeleton, open_skeleton
from paft_plugin.deltas.store import FLOATS, INPUT_EMBEDDINGS, OUTPUT_HEADS, TensorStore, tied_names
from paft_plugin.errors import some

VOCABULARY = INPUT_EMBEDDINGS + OUTPUT_HEADS
# Buffers that old checkpoints hold and new ones don't; nothing is trained in them.
BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
LAYER = re.compile(r"(.*?\.)(\d{1,6})\.")
MERGE_FIRST = "Merge it with `axolotl merge-lora` and give the merged model as the branch."


@dataclass
class Fit:
    """What of its base a branch changes, and what does not fit."""

    names: list[str] = field(default_factory=list)
    """Base tensors that the branch can change, sorted; of two tied ones the embedding alone."""
    changes: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))
    """Base tensor → the summands of an adapter's δ on it."""
    absent: list[str] = field(default_factory=list)
    """What an adapter changes and the base does not have, as the adapter calls it."""
    sources: dict[str, tuple[str, ParameterPlace]] = field(default_factory=dict)
    """Base tensor → the tensor of a whole model that stands for it, and what of that."""
    grown: dict[str, int] = field(default_factory=dict)
    """Tensor → rows that the branch added to the base's."""
    problems: list[str] = field(default_factory=list)
    """What does not fit, in full sentences."""
    notes: list[str] = field(default_factory=list)
    """What fits only as it is understood here, in full sentences."""


def fit_adapter(base: TensorStore, adapter: Adapter) -> Fit:
    """Match an adapter's tensors with a base's; reads headers only (and the two copies of a tied pair)."""
    if wrong := quantised(base):
        return Fit(problems=wrong)
    names = Names(base)
    fit = _fit_by(names, adapter)
    if not fit.absent:
        return fit
    absent = sorted(fit.absent)
    ways = _other_ways(names, adapter, absent)
    if len(ways) == 1:
        return ways[0]
    beyond = _layers_beyond(base, absent)
    several = f" (it would fit in {len(ways)} ways under other names)" if ways else ""
    fit.problems.append(
        f"{adapter.folder}: it adapts {some(absent)}{several}, which {base.folder} does not have{beyond}. "
        "Give the base model that this adapter was trained on."
    )
    return fit


def _fit_by(names: Names, adapter: Adapter) -> Fit:
    """The fit of an adapter's tensors by these names, but for what is absent."""
    base, fit = names.base, Fit()
    _lay(names, adapter, fit)
    if names.tied:
        fit.problems += _tied_problems(base, adapter, names.tied, fit.changes)
        fit.changes.pop(names.tied[1], None)
    fit.names = sorted(fit.changes)
    shapes = {name: shape for name in fit.names if (shape := _misfit(fit, base, adapter, name)) is not None}
    if shapes:
        first, shape = next(iter(shapes.items()))
        others = f", and {len(shapes) - 1} more do not fit either" if len(shapes) > 1 else ""
        fit.problems.append(
            f"{adapter.folder}: its change of {first} has shape {shape}, the base's tensor {base.shape(first)}{others}. "
            "Give the base model that this adapter was trained on."
        )
    if packed := [name for name in fit.names if base.dtype(name) not in FLOATS]:
        fit.problems.append(
            f"{adapter.folder}: it changes {some(packed)}, which {base.folder} stores as {base.dtype(packed[0])}: of that no "
            "delta can be taken. Give the model in 16 or 32 bits."
        )
    return fit


def _other_ways(names: Names, adapter: Adapter, absent: list[str]) -> list[Fit]:
    """Each way in which all of an adapter fits if it is laid below another module of the base, as in a vision-language model."""
    wanted, ways = absent[0].split("."), dict[tuple[str, ...], Fit]()
    numbered = next((place for place, part in enumerate(wanted) if part.isdigit()), 1)
    for cut in range(numbered):
        own, rest = "".join(f"{part}." for part in wanted[:cut]), ".".join(wanted[cut:])
        for name in names.base.names:
            beginning = name.removesuffix(rest)
            if beginning in (name, own) or (beginning and not beginning.endswith(".")):
                continue
            fit = _fit_by(names.renaming(own, beginning), adapter)
            if not (fit.absent or fit.problems or fit.grown):
                shown = f"{own}{wanted[cut]}…", f"{beginning}{wanted[cut]}…"
                fit.notes.append(
                    f"{adapter.folder}: what it calls {shown[0]} is taken for {shown[1]} of {names.base.folder}."
                )
                ways.setdefault(tuple(fit.names), fit)
    return list(ways.values())


def _layers_beyond(base: TensorStore, absent: list[str]) -> str:
    """A clause about how many layers the base has, if what it does not have are layers beyond them."""
    places = [LAYER.match(name) for name in absent]
    stacks = {place[1] for place in places if place}
    there = [int(place[2]) for name in base.names if (place := LAYER.match(name)) and place[1] in stacks]
    beyond = {int(place[2]) for place in places if place}
    if not there or not all(places) or min(beyond) <= max(there):
        return ""
    return f": it has {max(there) + 1} layers, and the adapter goes up to number {max(beyond) + 1}"


def fit_model(base: TensorStore, branch: TensorStore) -> Fit:
    """Match a whole model's tensors with a base's; reads headers only (and the two copies of a tied pair)."""
    if wrong := quantised(base) + quantised(branch):
        return Fit(problems=wrong)
    names, others = _own_names(base), _own_names(branch)
    sources = {name: (name, ParameterPlace(name)) for name in names & others}
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
    return fit


def has_other_vocabulary(base: TensorStore, branch: TensorStore) -> bool:
    """Whether a model differs from a base in the rows of its vocabulary, and in no other name or shape."""
    if any(not name.endswith(OUTPUT_HEADS) for name in {*base.names} ^ {*branch.names}):
        return False
    other = [name for name in base.names if name in branch and base.shape(name) != branch.shape(name)]
    rest = all(name.endswith(VOCABULARY) and base.shape(name)[1:] == branch.shape(name)[1:] for name in other)
    return bool(other) and rest and not quantised(base) + quantised(branch)


def _sources_by_place(
    base: TensorStore, branch: TensorStore, names: set[str], others: set[str]
) -> tuple[set[str], set[str], dict[str, tuple[str, ParameterPlace]]] | None:
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
            sources[name] = (there[place], ParameterPlace(place.parameter))
        # The branch holds fused what the base holds expert by expert.
        elif (whole := ParameterPlace(place.parameter)) in there:
            sources[name] = (there[whole], place)
    return names, others, sources


def _own_names(store: TensorStore) -> set[str]:
    """The tensors of a whole model that a training can change: no buffers, no indices, of two tied ones the embedding."""
    tied = tied_names(store)
    floats = (name for name in store.names if store.dtype(name) in FLOATS)
    return {name for name in floats if not name.endswith(BUFFERS) and not (tied and name == tied[1])}


def _misfit(fit: Fit, base: TensorStore, adapter: Adapter, name: str) -> tuple[int, ...] | None:
    """The shape of a change that does not fit a tensor; enters by how much one grows a vocabulary that may."""
    wanted = base.shape(name)
    for change in fit.changes[name]:
        shape = change.shape(adapter)
        may_grow = name.endswith(VOCABULARY) and shape[1:] == wanted[1:] and shape[0] > wanted[0]
        if may_grow:
            fit.grown[name] = max(shape[0] - wanted[0], fit.grown.get(name, 0))
        elif shape != wanted:
            return shape
    return None


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


class Names:
    """A base's tensors by the names that an adapter uses; transformers is asked only where the files don't say it themselves."""

    def __init__(self, base: TensorStore) -> None:
        self.base = base
        self._own = self._beginning = ""

    def renaming(self, own: str, beginning: str) -> Names:
        """The same, but what is not there by a name that begins with `own` is looked for with `beginning` instead of that."""
        other = copy.copy(self)  # with the skeleton that is built already
        other._own, other._beginning = own, beginning
        return other

    @cached_property
    def tied(self) -> tuple[str, str] | None:
        return tied_names(self.base)

    @cached_property
    def skeleton(self) -> Skeleton | str:
        return open_skeleton(self.base)

    def places(self, name: str) -> list[tuple[str, ParameterPlace]]:
        """Base tensors that make up what an adapter calls `name`, each with its place in it; empty if there are none.

        A tied base holds one tensor, under the embedding's name; its head is then there by its own name, without a tensor.
        """
        if (found := self._by(name)) or self._own == self._beginning or not name.startswith(self._own):
            return found
        return self._by(self._beginning + name.removeprefix(self._own))

    def _by(self, name: str) -> list[tuple[str, ParameterPlace]]:
        if name in self.base or (self.tied and name == self.tied[1]):
            return [(name, ParameterPlace(name))]
        if isinstance(self.skeleton, str):
            return []
        parameter = self.skeleton.parameter_of(name)
        return [(file, self.skeleton.places[file]) for file in self.skeleton.files.get(parameter, [])]


def _lay(names: Names, adapter: Adapter, fit: Fit) -> None:
    """Enter the base tensors that an adapter changes, and the summands of each δ; reads headers only."""
    parameters = _parameter_slots(names, adapter, fit)
    conv1d = _is_conv1d(names, adapter, set(adapter.factors) - set(parameters))
    for module, factors in adapter.factors.items():
        if module in parameters:
            _lay_parameter(names, adapter, fit, module, parameters[module])
        elif ".base_layer" in module:
            fit.problems.append(
                f"{adapter.folder}: {module} has factors of its own below a wrapped module, as torch's MultiheadAttention has. "
                "What they change is not known here. Retrain without that module among the targets."
            )
        else:
            _lay_module(names, adapter, fit, module, factors, conv1d)
    for name, key in adapter.copies.items():
        for file, place in _found(names, fit, name):
            fit.changes[file].append(FullCopy(key, place))
    for name, key in adapter.tokens.items():
        tokens = tuple(adapter.token_indices(name.removesuffix(".weight")))
        for file, _ in _found(names, fit, name):
            rows = names.base.shape(file)[0] if file in names.base else 0
            fit.changes[file].append(TokenRows(key, tokens, rows, adapter.copies.get(name)))


def _is_conv1d(names: Names, adapter: Adapter, modules: set[str]) -> bool:
    """Whether the base stores its linear weights as ``(I, O)``: by shape where that tells, else by the adapter's config.

    PEFT writes the flag of the *last* module it adapted, which can be a plain head on a Conv1D model.
    """
    for module in sorted(modules):
        product = adapter.shape(module)
        if adapter.factors[module].embedding or product[0] == product[1]:
            continue
        for file, _ in names.places(f"{module}.weight"):
            if file in names.base and names.base.shape(file) == product[::-1]:
                return True
    return bool(adapter.config.get("fan_in_fan_out"))


def _found(names: Names, fit: Fit, name: str) -> list[tuple[str, ParameterPlace]]:
    places = names.places(name)
    if not places:
        fit.absent.append(name)
    return places


def _lay_module(names: Names, adapter: Adapter, fit: Fit, module: str, factors: Factors, conv1d: bool) -> None:
    shape = adapter.shape(module)
    square = shape[0] == shape[1]
    for file, _ in _found(names, fit, f"{module}.weight"):
        # Of a tied base's head there is no tensor; what is wrong with that is said elsewhere.
        stored = names.base.shape(file) if file in names.base else shape
        transposed = factors.embedding or (conv1d if square else shape == stored[::-1])
        fit.changes[file].append(LowRank(module, transposed))
    if factors.bias:
        for file, _ in _found(names, fit, f"{module}.bias"):
            fit.changes[file].append(OfBias(module))


def _parameter_slots(names: Names, adapter: Adapter, fit: Fit) -> dict[str, str]:
    """Module of the adapter's file → full name of the parameter that its factors adapt.

    PEFT wraps a module once for each of its parameters, in the order of their registration, so that the first one's factors lie
    innermost, below the most `base_layer`.
    """
    targets = adapter.config.get("target_parameters") or []
    if not targets:
        return {}
    if isinstance(names.skeleton, str):
        fit.problems.append(
            f"{adapter.folder}: target_parameters is set ({some(sorted(targets))}), and {names.skeleton}, so it is unknown "
            f"which tensors those are. {MERGE_FIRST}"
        )
        return {}
    slots: dict[str, str] = {}
    for module, parameters in names.skeleton.own.items():
        own = [name for name in parameters if _is_target(name, targets)]
        wrappers = {module + depth * ".base_layer": name for depth, name in enumerate(reversed(own))}
        missing = sorted(set(wrappers) - set(adapter.factors))
        if missing:
            fit.problems.append(
                f"{adapter.folder}: target_parameters names {some(own)}, but its file has no factors for all of them "
                f"({some(missing)} missing). Repeat the run that writes it."
            )
        slots |= wrappers
    return slots


def _is_target(name: str, targets: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _lay_parameter(names: Names, adapter: Adapter, fit: Fit, module: str, parameter: str) -> None:
    assert isinstance(names.skeleton, Skeleton)
    skeleton = names.skeleton
    wanted = skeleton.shapes[parameter]
    inputs_first = len(wanted) == 3 and parameter.rpartition(".")[0] in skeleton.inputs_first
    if parameter in skeleton.unclear:
        fit.problems.append(
            f"{adapter.folder}: adapts {parameter}, which transformers makes of the files in {names.base.folder} by "
            f"{skeleton.unclear[parameter]}, so its change cannot be taken back to them. {MERGE_FIRST}"
        )
        return
    experts, rows = (wanted[0] if len(wanted) == 3 else 1), adapter.store.shape(adapter.factors[module].A)[0]
    if rows % experts:
        fit.problems.append(
            f"{adapter.folder}: its factors of {parameter} have {rows} rows, which {experts} experts cannot share evenly. "
            "Give the base model that this adapter was trained on."
        )
        return
    if inputs_first and experts == 1:
        fit.problems.append(
            f"{adapter.folder}: adapts {parameter}, which has a single expert stored inputs first; PEFT's own change does not "
            "fit it. Retrain without it."
        )
        return
    files = skeleton.files.get(parameter, [])
    if not files:
        fit.absent.append(parameter)
    for file in files:
        fit.changes[file].append(OfParameter(module, skeleton.places[file], wanted, inputs_first))
