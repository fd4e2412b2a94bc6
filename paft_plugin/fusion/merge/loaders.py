"""The tensors of a recipe's models as mergekit asks for them, adapters laid on their base one tensor at a time in fp32.

mergekit writes each `base+adapter` out as a whole model and reads that. Its tasks know a model only by an object in
`LoaderCache`, which finds tensors by name: here such an object yields base + s·BA, the very numbers of PEFT's
`merge_and_unload` in fp32, without that model. There is nothing on disk that could be stale.
"""

from __future__ import annotations

from pathlib import Path

import torch
from mergekit.common import ModelPath, ModelReference
from mergekit.io import ShardedTensorIndex
from torch import Tensor

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.belongs import branch_findings, check_finite
from paft_plugin.deltas.changes import Rows
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.fit import BUFFERS
from paft_plugin.deltas.quantised import quantised
from paft_plugin.deltas.store import FLOATS, TensorStore, open_model, tied_names
from paft_plugin.errors import PaftError, collecting, first_line, raise_if_any
from paft_plugin.files import ADAPTER_CONFIG, ADAPTER_FILE

MODEL_PATTERNS = ["*.json", "*.safetensors", "*.safetensors.index.json", "*.jinja", "tokenizer.model", "*.txt"]
ADAPTER_PATTERNS = [ADAPTER_CONFIG, ADAPTER_FILE]


class ModelLoader:
    """A whole model, with what mergekit's tasks use of a `LazyTensorLoader`: `index`, `get_tensor` and `flush`."""

    def __init__(self, store: TensorStore) -> None:
        self.store = store
        # mergekit looks up which tensors there are; the files behind them are the store's concern.
        self.index = ShardedTensorIndex(str(store.folder), True, dict.fromkeys(store.names, ""), [])

    def get_tensor(
        self, key: str, device: str = "cpu", aliases: list[str] | None = None, raise_on_missing: bool = True
    ) -> Tensor | None:
        """The tensor `key`, or the first of its aliases that is there.

        Raises:
            KeyError: None of them is, and `raise_on_missing`.
        """
        name = next((name for name in (key, *(aliases or ())) if name in self.index.tensor_paths), None)
        if name is None and raise_on_missing:
            raise KeyError(key)
        return None if name is None else self.tensor(name).to(device)

    def flush(self) -> None:
        """Nothing is held between two tensors."""

    def tensor(self, name: str) -> Tensor:
        """One tensor in its own dtype."""
        return self.store.tensor(name)

    def rows(self, name: str) -> Rows:
        """Ranges of a tensor's rows, the same as in `tensor`; each is good until the next one."""
        return self.store.slices(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of what `tensor` gives."""
        return self.stored_dtype(name)

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor on disk."""
        return TORCH_DTYPES[self.store.dtype(name)]

    def changes(self, name: str) -> bool:
        """Whether `tensor` gives anything but what the store holds under this name."""
        return False


class AdapterLoader(ModelLoader):
    """A base model with an adapter on it, all in fp32."""

    def __init__(self, delta: Delta) -> None:
        super().__init__(delta.base)
        self.delta = delta
        tied = tied_names(delta.base)
        # Of two tied tensors the delta has the embedding alone; a base whose file holds both must change in both.
        self._changed = {name: name for name in delta.names}
        if tied and tied[0] in self._changed:
            self._changed[tied[1]] = tied[0]
        self._adapter = open_adapter(delta.branch)
        # PEFT's merged model would not hold them.
        self.index.tensor_paths = {
            name: shard for name, shard in self.index.tensor_paths.items() if not name.endswith(BUFFERS)
        }

    def tensor(self, name: str) -> Tensor:
        """One tensor of base + adapter, in fp32."""
        tensor = super().tensor(name)
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.float()
        changed = self._changed.get(name)
        return tensor if changed is None else self._with_delta(tensor, changed)

    def rows(self, name: str) -> Rows:
        """Ranges of a tensor's rows in fp32, the same as in `tensor`."""
        changed = self._changed.get(name)
        if changed is None or not self.store.shape(name) or self._adapter.copies.get(changed):
            whole = torch.atleast_1d(self.tensor(name))
            return lambda start, stop: whole[start:stop]
        before, delta = self.store.slices(name), self.delta.rows(changed)
        return lambda start, stop: delta(start, stop).add_(before(start, stop).float())

    def _with_delta(self, base: Tensor, name: str) -> Tensor:
        delta = self.delta.one(name)
        if stored := self._adapter.copies.get(name):
            # A trained copy is the new tensor itself: base + (copy − base) could differ from it in the last bit.
            copy = self._adapter.store.tensor(stored).float()
            if copy.shape == base.shape and torch.equal(copy - base, delta):
                return copy
        return delta.add_(base)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of what `tensor` gives."""
        stored = self.stored_dtype(name)
        return torch.float32 if stored.is_floating_point else stored

    def changes(self, name: str) -> bool:
        """Whether the adapter changes a tensor."""
        return name in self._changed


TORCH_DTYPES = {name: getattr(torch, dtype) for name, dtype in FLOATS.items()} | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls a dtype → torch's."""


def open_loaders(wanted: list[ModelReference]) -> dict[ModelReference, ModelLoader]:
    """Open every model and adapter of a recipe; each base once.

    Raises:
        PaftError: Everything that is missing, corrupt, pickled or quantised, and each adapter that does not fit its base.
    """
    stores: dict[Path, TensorStore] = {}
    loaders: dict[ModelReference, ModelLoader] = {}
    problems: list[str] = []
    for reference in wanted:
        with collecting(problems):
            loaders[reference] = _open(reference, stores)
    raise_if_any(list(dict.fromkeys(problems)))
    return loaders


def folder_of(path: ModelPath, patterns: list[str]) -> Path:
    """The folder of a model or adapter; one that the recipe names on the hub is fetched, or found in the hub's cache.

    Raises:
        PaftError: Neither here nor there.
    """
    folder = Path(path.path)
    if folder.exists():
        return folder
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(path.path, revision=path.revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:  # offline, unknown, private, or no name of a repository at all
        why = first_line(error)
        raise PaftError(f"{path}: no such folder, and not to be had from the hub ({why}). Check the name.") from None
    return Path(found)


def _open(reference: ModelReference, stores: dict[Path, TensorStore]) -> ModelLoader:
    folder = folder_of(reference.model, MODEL_PATTERNS)
    if folder not in stores:
        stores[folder] = open_model(folder)
    store = stores[folder]
    raise_if_any(quantised(store))
    if reference.lora is None:
        return ModelLoader(store)
    adapter = folder_of(reference.lora, ADAPTER_PATTERNS)
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise PaftError(f"{adapter}: no {ADAPTER_CONFIG}, so no adapter. Name a whole model as a model, without `+`.")
    raise_if_any(branch_findings(store, adapter).problems or check_finite(adapter))
    return AdapterLoader(delta_of(store, adapter))
