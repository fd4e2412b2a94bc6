"""Which base tensors each part of an adapter changes, under the names that the base's files give them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from paft_plugin.deltas.adapter import Adapter, Factors
from paft_plugin.deltas.changes import Change, FullCopy, LowRank, OfBias, OfParameter, TokenRows
from paft_plugin.deltas.skeleton import Place, Skeleton, open_skeleton
from paft_plugin.deltas.store import TensorStore, tied_names
from paft_plugin.errors import some

MERGE_FIRST = "Merge it with `axolotl merge-lora` and give the merged model as the branch."


class Names:
    """A base's tensors by the names that an adapter uses; transformers is asked only where the files don't say it themselves."""

    def __init__(self, base: TensorStore) -> None:
        self.base = base

    @cached_property
    def tied(self) -> tuple[str, str] | None:
        return tied_names(self.base)

    @cached_property
    def skeleton(self) -> Skeleton | str:
        return open_skeleton(self.base)

    def places(self, name: str) -> list[tuple[str, Place]]:
        """Base tensors that make up what an adapter calls `name`, each with its place in it; empty if there are none.

        A tied base holds one tensor, under the embedding's name; its head is then there by its own name, without a tensor.
        """
        if name in self.base or (self.tied and name == self.tied[1]):
            return [(name, Place(name))]
        if isinstance(self.skeleton, str):
            return []
        parameter = self.skeleton.parameter_of(name)
        return [(file, self.skeleton.places[file]) for file in self.skeleton.files_of(parameter)]


@dataclass
class Layout:
    """An adapter's changes, sorted by the base tensors that they fall on."""

    changes: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))
    """Base tensor's name → the summands of its δ."""
    absent: list[str] = field(default_factory=list)
    """What the adapter changes and the base does not have, as the adapter calls it."""
    problems: list[str] = field(default_factory=list)


def lay(names: Names, adapter: Adapter) -> Layout:
    """Find the base tensors that an adapter changes; reads headers only."""
    layout = Layout()
    parameters = _parameter_slots(names, adapter, layout)
    conv1d = _is_conv1d(names, adapter, set(adapter.factors) - set(parameters))
    for module, factors in adapter.factors.items():
        if module in parameters:
            _lay_parameter(names, adapter, layout, module, parameters[module])
        elif ".base_layer" in module:
            layout.problems.append(
                f"{adapter.folder}: {module} has factors of its own below a wrapped module, as torch's MultiheadAttention has. "
                "What they change is not known here. Retrain without that module among the targets."
            )
        else:
            _lay_module(names, adapter, layout, module, factors, conv1d)
    for name, key in adapter.copies.items():
        for file, place in _found(names, layout, name):
            layout.changes[file].append(FullCopy(key, place))
    for name, key in adapter.tokens.items():
        tokens = tuple(adapter.token_indices(name.removesuffix(".weight")))
        for file, _ in _found(names, layout, name):
            rows = names.base.shape(file)[0] if file in names.base else 0
            layout.changes[file].append(TokenRows(key, tokens, rows, adapter.copies.get(name)))
    return layout


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


def _found(names: Names, layout: Layout, name: str) -> list[tuple[str, Place]]:
    places = names.places(name)
    if not places:
        layout.absent.append(name)
    return places


def _lay_module(names: Names, adapter: Adapter, layout: Layout, module: str, factors: Factors, conv1d: bool) -> None:
    shape = adapter.shape(module)
    square = shape[0] == shape[1]
    for file, _ in _found(names, layout, f"{module}.weight"):
        # Of a tied base's head there is no tensor; what is wrong with that is said elsewhere.
        stored = names.base.shape(file) if file in names.base else shape
        transposed = factors.embedding or (conv1d if square else shape == stored[::-1])
        layout.changes[file].append(LowRank(module, transposed))
    if factors.bias:
        for file, _ in _found(names, layout, f"{module}.bias"):
            layout.changes[file].append(OfBias(module))


def _parameter_slots(names: Names, adapter: Adapter, layout: Layout) -> dict[str, str]:
    """Module of the adapter's file → full name of the parameter that its factors adapt.

    PEFT wraps a module once for each of its parameters, in the order of their registration, so that the first one's factors lie
    innermost, below the most `base_layer`.
    """
    targets = adapter.config.get("target_parameters") or []
    if not targets:
        return {}
    if isinstance(names.skeleton, str):
        layout.problems.append(
            f"{adapter.folder}: target_parameters is set ({some(sorted(targets))}), and {names.skeleton}, so it is unknown "
            f"which tensors those are. {MERGE_FIRST}"
        )
        return {}
    slots: dict[str, str] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in names.skeleton.shapes):
        own = [name for name in names.skeleton.own(module) if _is_target(name, targets)]
        wrappers = {module + depth * ".base_layer": name for depth, name in enumerate(reversed(own))}
        missing = sorted(set(wrappers) - set(adapter.factors))
        if missing:
            layout.problems.append(
                f"{adapter.folder}: target_parameters names {some(own)}, but its file has no factors for all of them "
                f"({some(missing)} missing). Repeat the run that writes it."
            )
        slots |= wrappers
    return slots


def _is_target(name: str, targets: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _lay_parameter(names: Names, adapter: Adapter, layout: Layout, module: str, parameter: str) -> None:
    assert isinstance(names.skeleton, Skeleton)
    skeleton = names.skeleton
    wanted = skeleton.shapes[parameter]
    inputs_first = len(wanted) == 3 and parameter.rpartition(".")[0] in skeleton.inputs_first
    if parameter in skeleton.unclear:
        layout.problems.append(
            f"{adapter.folder}: adapts {parameter}, which transformers makes of the files in {names.base.folder} by "
            f"{skeleton.unclear[parameter]}, so its change cannot be taken back to them. {MERGE_FIRST}"
        )
        return
    experts, rows = (wanted[0] if len(wanted) == 3 else 1), adapter.store.shape(adapter.factors[module].A)[0]
    if rows % experts:
        layout.problems.append(
            f"{adapter.folder}: its factors of {parameter} have {rows} rows, which {experts} experts cannot share evenly. "
            "Give the base model that this adapter was trained on."
        )
        return
    if inputs_first and experts == 1:
        layout.problems.append(
            f"{adapter.folder}: adapts {parameter}, which has a single expert stored inputs first; PEFT's own change does not "
            "fit it. Retrain without it."
        )
        return
    files = skeleton.files_of(parameter)
    if not files:
        layout.absent.append(parameter)
    for file in files:
        layout.changes[file].append(OfParameter(module, skeleton.places[file], wanted, inputs_first))
