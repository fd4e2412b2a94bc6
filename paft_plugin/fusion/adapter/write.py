"""The fused adapter as a folder: factors, PEFT config, tokenizer, and what it was made of and misses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from paft_plugin.deltas.adapter import PREFIX
from paft_plugin.deltas.store import MODEL_FILE
from paft_plugin.errors import PaftError
from paft_plugin.files import ADAPTER_CONFIG, ADAPTER_FILE, PROOF_FILE, read_json, write_json, write_text
from paft_plugin.fusion.adapter.errors import ModuleError, form, rank_for, total_error
from paft_plugin.fusion.adapter.fused_delta import FusedDelta, open_fused_delta
from paft_plugin.fusion.adapter.parts import Adapted, Saved, fused_parts
from paft_plugin.fusion.adapter.peft_model import Shape, Slot, check_accepted, lora_config, wanted_by_peft
from paft_plugin.fusion.merge.fusion import Fusion
from paft_plugin.fusion.merge.write import (
    GENERATION_CONFIG,
    check_chat_template,
    check_unchanged,
    fingerprints,
    provenance_record,
    provenance_text,
    write_tokenizer,
)
from paft_plugin.fusion.merge.writer import ShardedWriter, whole_folder
from paft_plugin.templates import render

MAX_ERROR = 0.05
ONE_FILE = 1 << 62


@dataclass(frozen=True)
class FusedAdapter:
    """What an adapter that was written misses, and what to say of it."""

    errors: list[ModuleError]
    warnings: list[str]


@dataclass
class _Contents:
    """What the adapter's file holds so far."""

    fused: FusedDelta
    writer: ShardedWriter
    held: dict[str, Shape] = field(default_factory=dict)
    adapted: dict[str, tuple[Slot, int]] = field(default_factory=dict)
    errors: list[ModuleError] = field(default_factory=list)
    saved: set[str] = field(default_factory=set)
    biases: list[Saved] = field(default_factory=list)
    """Kept to the end: they are small, and their names in the file depend on what else is there."""
    embedding: Tensor | None = None
    """The changed embedding of a base that ties it to the head: PEFT wants it under both names."""

    def add(self, part: Adapted | Saved) -> None:
        """Write one part, or keep a bias for the end."""
        if isinstance(part, Adapted):
            product, truncation = part.truncation.product, part.truncation
            for key, factor in zip(part.slot.keys_of_factors(), (product.A, product.B), strict=True):
                self.write(key, factor)
            module = part.slot.module
            self.adapted[module] = part.slot, product.rank
            one = ModuleError(module, product.rank, truncation.square, truncation.squared_error, truncation.tail)
            self.errors.append(one)
        elif part.slot.is_bias:
            self.biases.append(part)
        else:
            self.saved.add(part.slot.module)
            self.write(part.slot.key_of_copy(is_adapted=False), part.tensor)
            tied = self.fused.live.tied
            if tied and self.fused.live.files[part.slot.parameter] == tied[0]:
                self.embedding = part.tensor

    @property
    def whole_copies(self) -> list[str]:
        """Modules, then biases, that are held as whole copies."""
        return [*sorted(self.saved), *(bias.slot.parameter for bias in self.biases)]

    def as_json(self, rank: int | None, max_error: float) -> dict[str, Any]:
        """What `paft.json` says of the adapter: rank and relative error of each module and in total."""
        modules = {one.module: {"rank": one.rank, "relative_error": one.relative} for one in self.errors}
        return {
            "base": self.fused.base.model.path,
            "rank": rank,
            "max_error": max_error,
            "total_relative_error": total_error(self.errors),
            "modules": modules,
            "whole_copies": sorted(set(self.whole_copies)),
        }

    def write(self, key: str, tensor: Tensor) -> None:
        """Write one tensor."""
        self.held[key] = tuple(tensor.shape)
        self.writer.add(key, tensor)

    def complete(self, wanted: dict[str, Shape]) -> None:
        """Write what else PEFT asks for: the unchanged rest of a module that is saved, and the head tied to an embedding."""
        live = self.fused.live
        head = live.model.get_output_embeddings() if self.embedding is not None else None
        tied = next((name for name, module in live.model.named_modules() if module is head), None)
        for key in wanted:
            parameter = key.removeprefix(PREFIX)
            module = parameter.rpartition(".")[0]
            if key in self.held or module not in (*self.saved, tied):
                continue
            if self.embedding is not None and parameter == f"{tied}.weight":
                self.write(key, self.embedding)
            elif parameter in live.files:
                self.write(key, self.fused.store.tensor(live.files[parameter]))


def write_adapter(
    fusion: Fusion,
    out: Path,
    rank: int | None = None,
    max_error: float = MAX_ERROR,
    findings: Sequence[str] = (),
    quiet: bool = True,
) -> FusedAdapter:
    """Write a recipe's fused delta as a PEFT adapter on its base to `out`: the whole of it or nothing.

    Where the merge is linear in the deltas of adapters, it is exact: their factors side by side, of rank r₁ + r₂. Otherwise, and
    above `rank`, it is the best approximation of that rank. Changes that are no matrix (norms, biases), and what a branch
    holds as a whole copy, become whole copies.

    Args:
        fusion: Whatever its dtypes, the delta is computed in fp32.
        out: A folder that does not exist yet, or is empty.
        rank: The most per module; None where the merge is linear: as much as is exact.
        max_error: Greatest total ‖δ − δ̂‖/‖δ‖ to accept, over all modules with factors.
        findings: What a check of the recipe said, a sentence each; kept with the adapter.

    Raises:
        PaftError: The error is greater (with the rank that would do), the change is of a kind that PEFT cannot hold, `rank` is
            missing, or as `Fusion.tensors`; or `out` is taken or cannot be written.
    """
    if not max_error >= 0:
        raise PaftError(f"--max-error {max_error}: not a number from 0 up. Give one like 0.05.")
    check_chat_template(fusion)
    fused = open_fused_delta(fusion)
    with whole_folder(out) as folder:
        before = fingerprints(fusion)
        contents = _write_adapter_file(fused, folder, rank, max_error, quiet)
        errors = contents.errors
        _refuse_above(errors, max_error)
        check_unchanged(fusion, before)
        # The tokenizer of a recipe that builds one is known only now, and to the fusion that ran.
        warnings = [*fused.fusion.notes, *write_tokenizer(fused.fusion, folder)]
        (folder / GENERATION_CONFIG).unlink(missing_ok=True)
        record = provenance_record(fusion, before, [*findings, *fused.fusion.notes])
        record |= {"kind": "fused adapter", "adapter": contents.as_json(rank, max_error)}
        write_json(folder / PROOF_FILE, record)
        write_text(folder / "mergekit_config.yml", fusion.text)
        write_text(folder / "README.md", _adapter_card(out.absolute().name, contents, record))
    if whole := contents.whole_copies:
        warnings.append(
            f"whole copies of {len(whole)} modules or biases are in the adapter ({whole[0]} …): PEFT loads them, vLLM and "
            "other servers of adapters may refuse. Merge without --adapter for those."
        )
    return FusedAdapter(errors, warnings)


def _write_adapter_file(fused: FusedDelta, folder: Path, rank: int | None, max_error: float, quiet: bool) -> _Contents:
    # Of each parameter at most two tensors, under names no longer than these.
    names = [f"{PREFIX}{slot.parameter}.lora_embedding_{which}" for slot in fused.live.slots.values() for which in "AB"]
    with closing(ShardedWriter(folder, names, ONE_FILE)) as writer:
        contents = _Contents(fused, writer)
        for part in fused_parts(fused, rank, max_error, quiet):
            contents.add(part)
        if not contents.adapted:
            raise PaftError(
                f"{fused.fusion.recipe}: the fused delta changes no linear layer or embedding by factors, so there is nothing "
                "for a LoRA adapter to hold. Merge without --adapter."
            )
        for bias in contents.biases:
            contents.write(bias.slot.key_of_copy(bias.slot.module in contents.adapted), bias.tensor)
        loose = any(bias.slot.module not in contents.saved for bias in contents.biases)
        config = lora_config(fused.base, fused.live, contents.adapted, contents.saved, loose)
        wanted = wanted_by_peft(fused.live, config)
        contents.complete(wanted)
        check_accepted(wanted, contents.held, fused.base.model.path)
        writer.finish()
    (folder / MODEL_FILE).rename(folder / ADAPTER_FILE)
    config.save_pretrained(folder)
    # PEFT keeps the targets as a set, whose order is another in every process.
    content = read_json(folder / ADAPTER_CONFIG)
    write_json(folder / ADAPTER_CONFIG, {**content, "target_modules": sorted(content["target_modules"])})
    return contents


def _refuse_above(errors: Sequence[ModuleError], most: float) -> None:
    total = total_error(errors)
    if total <= most:
        return
    worst = max(errors, key=lambda one: one.squared_error)
    found = rank_for(errors, most)
    if found is None:
        way_out = "No rank would do."
    else:
        rank, sure = found
        way_out = f"--rank {rank} would do{'' if sure else ', by an estimate from some modules'}."
    raise PaftError(
        f"at rank {max(one.rank for one in errors)} the adapter misses {total:.4f} of the fused delta (‖δ − δ̂‖/‖δ‖; most in "
        f"{worst.module}: {worst.relative:.4f}), more than --max-error {most}. {way_out} Or raise --max-error, or merge "
        "without --adapter."
    )


def _adapter_card(name: str, contents: _Contents, record: dict[str, Any]) -> str:
    base = contents.fused.base.model.path
    # The hub knows no folders of this machine.
    known = {} if Path(base).exists() else {"base_model": base}
    front = {**known, "library_name": "peft", "tags": ["lora", "merge", "mergekit", "paft"]}
    ranks = {one.rank for one in contents.errors}
    return render(
        "paft_plugin.fusion",
        "adapter_card.md",
        front=yaml.safe_dump(front, sort_keys=False).rstrip(),
        name=name,
        base=base,
        record=record,
        ranks=sorted({min(ranks), max(ranks)}),
        error=form(total_error(contents.errors)),
        proof=PROOF_FILE,
        provenance=provenance_text(record),
    )
