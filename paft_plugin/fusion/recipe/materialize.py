"""An adapter on its base as a whole model on disk, so that a recipe needs no flags: one tensor in memory at a time.

Tensors that the adapter touches are written in fp32, since base + δ in the base's own bf16 would lose most of a small
delta; all others are copied bit by bit in the base's dtype, which loses nothing and halves their size. mergekit and
transformers read both kinds from one folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.store import MODEL_FILE, MODEL_INDEX, open_model, tied_names
from paft_plugin.errors import PaftError
from paft_plugin.files import PROOF_FILE, read_json
from paft_plugin.fusion.recipe.settings import MATERIALIZED, Branch, Recipe

SHARD = 4 * 2**30
"""Bytes in one file at most, unless a single tensor is larger."""
COMPANIONS = (".json", ".jinja", ".txt", ".model", ".py")
"""What belongs to a model beside its weights: configs, tokenizer, chat template, code."""
FP32 = "F32"
# safetensors' words.
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}


@dataclass(frozen=True)
class Entry:
    """One tensor of a model to be written."""

    name: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * SIZES[self.dtype]


def materialize(recipe: Recipe) -> Recipe:
    """Write a recipe's adapters as whole models beside it, and return the recipe that reads these instead.

    A folder is named after what base and adapter hold, and appears only when it is whole: one that is there is reused.

    Raises:
        PaftError: Both branches are whole models already, or the disk is too small.
    """
    if not any(branch.is_adapter for branch in recipe.branches):
        raise PaftError("--materialize: both branches are whole models already. Leave it out.")
    base = open_model(recipe.base)
    folder = recipe.file.parent / MATERIALIZED
    deltas = {name: delta_of(base, branch.path) for name, branch in _adapters(recipe)}
    targets = {name: folder / f"{name}-{delta.fingerprint()}" for name, delta in deltas.items()}
    missing = [name for name, target in targets.items() if not target.exists()]
    _check_space(recipe.file.parent, {name: size_on_disk(deltas[name]) for name in missing})
    for name in missing:
        write_model(deltas[name], targets[name])

    def whole(name: str, branch: Branch) -> Branch:
        return replace(branch, whole=targets.get(name))

    return replace(recipe, sft=whole("sft", recipe.sft), preference=whole("preference", recipe.preference))


def materialized(recipe: Recipe) -> dict[Path, int]:
    """The whole models that a recipe reads in place of adapters → their bytes on disk."""
    wholes = [branch.whole for branch in recipe.branches if branch.whole is not None]
    return {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in wholes}


def size_on_disk(delta: Delta) -> int:
    """Bytes that the weights of base + δ will take."""
    return sum(entry.size for entry in _entries(delta))


def write_model(delta: Delta, target: Path) -> None:
    """Write base + δ as a model's folder, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write_weights(delta, temporary)
        _write_companions(delta, temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _adapters(recipe: Recipe) -> list[tuple[str, Branch]]:
    named = (("sft", recipe.sft), ("preference", recipe.preference))
    return [(name, branch) for name, branch in named if branch.is_adapter]


def _check_space(folder: Path, sizes: dict[str, int]) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    wanted, free = sum(sizes.values()), shutil.disk_usage(existing).free
    if wanted > free:
        raise PaftError(
            f"--materialize: {existing} has {free / 1e9:.1f} GB free, and the whole models of {' and '.join(sizes)} take "
            f"{wanted / 1e9:.1f} GB. Give an --output on a larger disk, or leave --materialize out."
        )


def _entries(delta: Delta) -> list[Entry]:
    base, touched = delta.base, _touched(delta)
    return [Entry(name, FP32 if name in touched else base.dtype(name), base.shape(name)) for name in base.names]


def _touched(delta: Delta) -> dict[str, str]:
    """Base tensor → the delta's name for it: the same, but for the stored head of a tied pair, which moves with the embedding."""
    touched = {name: name for name in delta.names}
    tied = tied_names(delta.base)
    if tied and tied[0] in touched and tied[1] in delta.base:
        touched[tied[1]] = tied[0]
    return touched


def _shards(entries: list[Entry]) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(other.size for other in shards[-1]) + entry.size > SHARD:
            shards.append([])
        shards[-1].append(entry)
    return shards


def _write_weights(delta: Delta, folder: Path) -> None:
    touched, shards = _touched(delta), _shards(_entries(delta))

    def tensors(entries: list[Entry]) -> Iterator[Tensor]:
        for entry in entries:
            tensor = delta.base.tensor(entry.name)
            yield tensor.float() + delta.one(touched[entry.name]) if entry.name in touched else tensor

    names = [MODEL_FILE]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(entry.size for shard in shards for entry in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, tensors(shard))


def _write_shard(file: Path, entries: list[Entry], tensors: Iterator[Tensor]) -> None:
    """One safetensors file, tensor by tensor: the format is a header with every tensor's place, then their bytes.

    The libraries' own `save_file` wants all tensors of a file in memory at once.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def _write_companions(delta: Delta, folder: Path) -> None:
    for file in delta.base.folder.iterdir():
        if file.is_file() and file.suffix in COMPANIONS and file.name not in ("config.json", MODEL_INDEX, PROOF_FILE):
            shutil.copyfile(file, folder / file.name)
    config = read_json(delta.base.folder / "config.json")
    key = "dtype" if "dtype" in config else "torch_dtype"
    (folder / "config.json").write_text(json.dumps({**config, key: "float32"}, indent=2) + "\n", encoding="utf-8")
    proof = delta.branch / PROOF_FILE
    if proof.is_file():
        shutil.copyfile(proof, folder / PROOF_FILE)
