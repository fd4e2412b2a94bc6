"""Whether branches belong to a base: everything that is wrong, at once, before anything costly starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

from paft_plugin.deltas.adapter import Adapter, open_adapter
from paft_plugin.deltas.containment import APART, inside, of_adapters
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.fit import fit_adapter, fit_model
from paft_plugin.deltas.quantised import quantised, without_twin
from paft_plugin.deltas.store import TensorStore, is_adapter, open_model, same_content
from paft_plugin.deltas.tokenizer import Tokenizer, compare, conflicts, read_tokenizer
from paft_plugin.errors import Findings, PaftError, collecting, some
from paft_plugin.files import ADAPTER_CONFIG, read_json


def examine(base: Path, branches: Sequence[Path]) -> Findings:
    """All that is to be said about branches before they are fused on their base.

    Reads every tensor of each branch once, one at a time, since a NaN can be anywhere; of the base only headers, unless an
    adapter names another folder as its base: then both are compared.
    """
    findings, pairs = Findings(), list(combinations(branches, 2))
    for one, other in pairs:
        if one.exists() and other.exists() and one.samefile(other):
            findings.problem(f"{one}: given as two branches. Give only such as were trained apart from each other.")
    for branch in branches:
        found = check_branch(base, branch)
        findings.take(found)
        if not found.problems:
            findings.problem(*check_finite(branch))
    if not findings.problems:
        findings.warn(*continued(open_model(base), branches))
    of_base, *tokenizers = [_tokenizer(findings, folder) for folder in (base, *branches)]
    for tokenizer in tokenizers:
        findings.take(compare(of_base, tokenizer))
    for first, second in combinations(tokenizers, 2):
        findings.problem(*conflicts(of_base, first, second))
    return findings


def check_belongs(base: Path, branch: Path) -> list[str]:
    """All that keeps `branch` (an adapter's or a model's folder) from being a delta on `base`; empty if nothing does."""
    return check_branch(base, branch).problems


def check_branch(base: Path, branch: Path) -> Findings:
    """The same, and as warnings what of it is only as it is understood here: names of tensors, the base's own name."""
    findings = Findings()
    with collecting(findings.problems):
        store = open_model(base)
    if not findings.problems:
        return branch_findings(store, branch)
    # The branch's own faults are worth knowing at the same time.
    with collecting(findings.problems):
        _ = open_adapter(branch) if is_adapter(branch) else open_model(branch)
    return findings


def branch_findings(base: TensorStore, branch: Path) -> Findings:
    """`check_branch` on a base that is open already."""
    try:
        if not is_adapter(branch):
            return Findings(fit_model(base, open_model(branch)).problems)
        adapter = open_adapter(branch)
    except PaftError as error:
        return Findings(quantised(base) + error.problems)
    fit = fit_adapter(base, adapter)
    if fit.grown:
        added = ", ".join(f"{name} by {rows} rows" for name, rows in fit.grown.items())
        fit.problems.append(
            f"{branch}: its vocabulary grew against {base.folder} ({added}). Resize the base before both branches are "
            "trained, or train with a tokenizer that has no more tokens than the base."
        )
    # A misfit says the same more precisely; the name of the base is then only a second message about one mistake.
    if fit.problems:
        return Findings(fit.problems)
    findings = _other_base(base, adapter)
    findings.warn(*adapter.notes, *fit.notes)
    return findings


def continued(base: TensorStore, branches: Sequence[Path]) -> list[str]:
    """A warning for every two adapters on a base of which one holds the other's delta; of whole models the linter says it."""
    deltas = [delta_of(base, branch) for branch in branches if is_adapter(branch)]
    return [warning for one, other in combinations(deltas, 2) for warning in _inside(one, other)]


def _inside(one: Delta, other: Delta) -> list[str]:
    found = inside(of_adapters(one, other))
    if found is None:
        return []
    inner, outer = (str(delta.branch) for delta in ((one, other) if found[0] else (other, one)))
    return [f"{found[1].sentence(inner, outer)} Use {outer} alone. {APART.format(outer, inner)}"]


def check_finite(branch: Path) -> list[str]:
    """Tensors of a branch that hold NaN or infinity, as one problem, read one at a time; `PaftError` if it cannot be opened."""
    store = open_adapter(branch).store if is_adapter(branch) else open_model(branch)
    broken = [name for name in store.names if not is_finite(store.tensor(name))]
    if not broken:
        return []
    return [f"{branch}: NaN or infinity in {some(broken)}: its training diverged. Retrain with a lower learning rate."]


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both propagate NaN, and unlike isfinite() need no second tensor.
    smallest, largest = torch.aminmax(tensor)
    return math.isfinite(smallest) and math.isfinite(largest)


def _tokenizer(findings: Findings, folder: Path) -> Tokenizer | None:
    with collecting(findings.problems):
        return read_tokenizer(folder)
    return None


def _other_base(base: TensorStore, adapter: Adapter) -> Findings:
    """A problem if the adapter says that it was trained on another base: by content where that one is here, else by name."""
    findings, said = Findings(), adapter.config.get("base_model_name_or_path")
    if not said or is_model(base, said):
        return findings
    if is_model(base, without_twin(said)) or _is_quantised_twin(base, Path(said)):
        findings.warn(
            f"{adapter.folder}: trained on {said}, a quantised copy of {base.folder}. Its delta also makes up for what that "
            "copy lost; it is laid on the whole weights, as usual."
        )
    else:
        findings.problem(
            f"{adapter.folder}: trained on {said}, not on {base.folder}. Give that base. If they are the same model, "
            f"write {base.folder} as base_model_name_or_path into its {ADAPTER_CONFIG}."
        )
    return findings


def is_model(base: TensorStore, said: str) -> bool:
    """Whether a path or a hub name that somebody wrote for a model means this one.

    By content where it is a folder that is here; else by the name of this one's folder, in the hub's cache, or in its config.
    """
    there = Path(said)
    if there.is_dir():
        try:
            return there.resolve() == base.folder.resolve() or same_content(base, open_model(there))
        except PaftError:
            return False
    own = str(read_json(base.folder / "config.json").get("_name_or_path") or "")
    names = {part.rpartition("--")[2] for part in base.folder.resolve().parts} | {Path(own).name}
    return _bare(said) in {_bare(name) for name in names}


def _bare(name: str) -> str:
    # Meta's own models lost this beginning when they were renamed, the copies of them did not.
    return Path(name).name.lower().removeprefix("meta-")


def _is_quantised_twin(base: TensorStore, there: Path) -> bool:
    """Whether a folder that is here holds a quantised copy of the base, as its config or its name says."""
    try:
        if not there.is_dir() or not quantised(store := open_model(there)):
            return False
        said = str(read_json(there / "config.json").get("_name_or_path") or "")
    except PaftError:
        return False
    return any(is_model(base, without_twin(name)) for name in (said, store.folder.name) if name)
