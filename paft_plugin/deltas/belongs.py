"""Whether branches belong to a base: everything that is wrong, at once, before anything costly starts."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from paft_plugin.deltas.adapter import Adapter, open_adapter
from paft_plugin.deltas.fit import fit_adapter, fit_model, quantised
from paft_plugin.deltas.proof import why_unproven
from paft_plugin.deltas.store import TensorStore, is_adapter, open_model, same_content
from paft_plugin.deltas.tokenizer import Tokenizer, compare, conflicts, read_tokenizer
from paft_plugin.errors import Findings, PaftError, collecting, some
from paft_plugin.files import ADAPTER_CONFIG, read_json


def examine(base: Path, sft: Path, preference: Path) -> Findings:
    """All that is to be said about two branches before they are fused on their base.

    Reads every tensor of both branches once, one at a time, since a NaN can be anywhere; of the base only headers, unless an
    adapter names another folder as its base: then both are compared.
    """
    findings = Findings()
    if sft.exists() and preference.exists() and sft.samefile(preference):
        findings.problem(f"{sft}: given as both branches. Give two that were trained apart from each other.")
    for branch in (sft, preference):
        problems = check_belongs(base, branch)
        findings.problem(*(problems or check_finite(branch)))
    tokenizers = [_tokenizer(findings, folder) for folder in (base, sft, preference)]
    for tokenizer in tokenizers[1:]:
        findings.take(compare(tokenizers[0], tokenizer))
    findings.problem(*conflicts(*tokenizers))
    if reason := why_unproven(sft):
        findings.warn(reason)
    return findings


def check_belongs(base: Path, branch: Path) -> list[str]:
    """All that keeps `branch` (an adapter's or a model's folder) from being a delta on `base`; empty if nothing does."""
    problems: list[str] = []
    with collecting(problems):
        store = open_model(base)
    if not problems:
        return quantised(store) + branch_problems(store, branch)
    # The branch's own faults are worth knowing at the same time.
    with collecting(problems):
        _ = open_adapter(branch) if is_adapter(branch) else open_model(branch)
    return problems


def branch_problems(base: TensorStore, branch: Path) -> list[str]:
    """`check_belongs` on a base that is open already."""
    try:
        if not is_adapter(branch):
            return fit_model(base, open_model(branch)).problems
        adapter = open_adapter(branch)
    except PaftError as error:
        return error.problems
    fit = fit_adapter(base, adapter)
    if fit.grown:
        added = ", ".join(f"{name} by {rows} rows" for name, rows in fit.grown.items())
        fit.problems.append(
            f"{branch}: its vocabulary grew against {base.folder} ({added}). Resize the base before both branches are "
            "trained, or train with a tokenizer that has no more tokens than the base."
        )
    # A misfit says the same more precisely; the name of the base is then only a second message about one mistake.
    return fit.problems or _other_base(base, adapter)


def check_finite(branch: Path) -> list[str]:
    """Tensors of a branch that hold NaN or infinity, as one problem, read one at a time; `PaftError` if it cannot be opened."""
    store = open_adapter(branch).store if is_adapter(branch) else open_model(branch)
    broken = [name for name in store.names if not _is_finite(store.tensor(name))]
    if not broken:
        return []
    return [f"{branch}: NaN or infinity in {some(broken)}: its training diverged. Retrain with a lower learning rate."]


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both propagate NaN, and unlike isfinite() need no second tensor.
    smallest, largest = torch.aminmax(tensor)
    return math.isfinite(smallest) and math.isfinite(largest)


def _tokenizer(findings: Findings, folder: Path) -> Tokenizer | None:
    with collecting(findings.problems):
        return read_tokenizer(folder)
    return None


def _other_base(base: TensorStore, adapter: Adapter) -> list[str]:
    """A problem if the adapter says that it was trained on another base: by content where that one is here, else by name."""
    said = adapter.config.get("base_model_name_or_path")
    if not said:
        return []
    there = Path(said)
    if there.is_dir():
        if there.resolve() == base.folder.resolve() or _same_content(base, there):
            return []
    elif _same_name(base.folder, said):
        return []
    return [
        f"{adapter.folder}: trained on {said}, not on {base.folder}. Give that base. If they are the same model, "
        f"write {base.folder} as base_model_name_or_path into its {ADAPTER_CONFIG}."
    ]


def _same_content(base: TensorStore, there: Path) -> bool:
    try:
        return same_content(base, open_model(there))
    except PaftError:
        return False


def _same_name(base: Path, said: str) -> bool:
    """Whether a hub name or vanished path (`org/name`) names the folder `base`, also within the hub's cache or by its config."""
    name = Path(said).name.lower()
    folders = {part.lower().rpartition("--")[2] for part in base.resolve().parts}
    own = str(read_json(base / "config.json").get("_name_or_path") or "")
    return name in folders or name == Path(own).name.lower()
