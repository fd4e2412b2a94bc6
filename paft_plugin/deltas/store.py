"""Tensors of one folder, read one at a time from memory-mapped safetensors (a whole model, a sharded one, or an adapter)."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paft_plugin.errors import PaftError, printable, raise_if_any, some
from paft_plugin.files import ADAPTER_CONFIG, ADAPTER_FILE, fingerprint, read_json
from paft_plugin.reading import read_header

MODEL_FILE = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# What safetensors calls the dtypes in which deltas can be taken, in torch's words.
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

Slices = Callable[[int, int], Tensor]
"""(start, stop) → those of a tensor's slices along its first dimension, in its own dtype; the next call may overwrite them."""

# How architectures name their input embedding and their output head: the two tensors that may be tied.
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")


class _OpenFile:
    """A file that is open as long as this object is there."""

    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


class TensorStore:
    """Named tensors in a folder's safetensors files, read when they are asked for; all broken files are one `PaftError`."""

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        self.folder = folder
        self._handles: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        self._open: dict[Path, _OpenFile] = {}
        problems = []
        for file in files:
            try:
                if file.exists() and not file.is_file():  # opening a FIFO would wait for ever
                    raise SafetensorError("no regular file")
                handle = safe_open(file, framework="pt")
            except FileNotFoundError:
                problems.append(f"{file}: missing. Copy or download it again, or repeat the run that writes it.")
            except SafetensorError as error:
                problems.append(
                    f"{file}: truncated or corrupt ({error}). Download it again, or repeat the run that writes it."
                )
            else:
                self._handles.update(dict.fromkeys(handle.keys(), handle))
                self._files.update(dict.fromkeys(handle.keys(), file))
        raise_if_any(problems)

    @cached_property
    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        return sorted(self._handles)

    def __contains__(self, name: object) -> bool:
        return name in self._handles

    def tensor(self, name: str) -> Tensor:
        """One tensor, in its own shape and dtype, on the CPU."""
        # A handle of its own, whose memory map goes with the tensor: the pages of a file that stays mapped count as this
        # process's memory once they were read, in the end as much as the whole model.
        try:
            with safe_open(self._files[name], framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise PaftError(
                f"{self._files[name]}: changed while it was read ({error}). Repeat this once nothing writes it any more."
            ) from None
        return tensor

    def slices(self, name: str) -> Slices:
        """Ranges of one tensor, read from its file into the same memory again and again; a scalar is read as one slice.

        Reading a cached file costs half of what mapping its pages does, and none of them count as this process's memory.

        Raises:
            PaftError: from what is returned, if the file was cut short meanwhile.
        """
        if not hasattr(os, "preadv"):
            whole = torch.atleast_1d(self.tensor(name))
            return lambda start, stop: whole[start:stop]
        file, shape = self._files[name], self.shape(name)[1:]
        dtype: torch.dtype = getattr(torch, FLOATS[self.dtype(name)])
        width = math.prod(shape) * dtype.itemsize
        begin, _ = self._places[name]
        opened = self._opened(file)
        # By the number of slices: all of a tensor's ranges but the last have the same.
        memory: dict[int, tuple[Tensor, memoryview]] = {}

        def room(count: int) -> tuple[Tensor, memoryview]:
            flat = torch.empty(count * width, dtype=torch.uint8)
            memory.clear()
            memory[count] = flat.view(dtype).view(count, *shape), flat.numpy().data
            return memory[count]

        def read(start: int, stop: int) -> Tensor:
            tensor, buffer = memory.get(stop - start) or room(stop - start)
            place, done, size = begin + start * width, 0, len(buffer)
            while done < size:
                if not (got := os.preadv(opened.descriptor, [buffer[done:]], place + done)):
                    raise PaftError(
                        f"{file}: truncated while it was read. Inspect a model that nothing writes any more."
                    )
                done += got
            return tensor

        return read

    def read_ahead(self, name: str) -> None:
        """Ask the system to have one tensor's bytes in its cache soon; does nothing where it cannot be asked."""
        if hasattr(os, "posix_fadvise"):
            begin, end = self._places[name]
            with contextlib.suppress(OSError):  # A wish, which some file systems do not know.
                os.posix_fadvise(self._opened(self._files[name]).descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _opened(self, file: Path) -> _OpenFile:
        # Of two threads that open it at once, one closes its own again.
        return self._open.get(file) or self._open.setdefault(file, _OpenFile(file))

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Name → where its bytes begin and end in its file."""
        places = {}
        for file in set(self._files.values()):
            start, header = read_header(file)
            for name, each in header.items():
                begin, end = each["data_offsets"]
                places[name] = (start + begin, start + end)
        return places

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, read from the header."""
        return tuple(self._handles[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """A tensor's dtype as safetensors calls it (`F32`, `BF16`, …), read from the header."""
        dtype: str = self._handles[name].get_slice(name).get_dtype()
        return dtype

    @cached_property
    def main_dtype(self) -> str:
        """The dtype (safetensors' word) that most entries of its floats have: a few fp32 norms do not make a bf16 model fp32."""
        entries: Counter[str] = Counter()
        for name in (name for name in self.names if self.dtype(name) in FLOATS):
            entries[self.dtype(name)] += torch.Size(self.shape(name)).numel()
        return entries.most_common(1)[0][0] if entries else "F32"

    @cached_property
    def fingerprint(self) -> str:
        """Of names, dtypes, shapes and bits: the same for any path, file time, sharding and metadata.

        Hashed anew for every store, tensors side by side on all cores. It is kept nowhere: no sign of a file (size, times,
        inode) proves that its content is still the one that was hashed, and a stale fingerprint is worse than a slow one.
        """
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = list(pool.map(self._digest, self.names))
        parts = ([name, self.dtype(name), str(self.shape(name))] for name in self.names)
        return fingerprint(word for part, digest in zip(parts, digests, strict=True) for word in [*part, digest])

    def _digest(self, name: str) -> str:
        return hashlib.sha256(_bits(self.tensor(name)).numpy().data).hexdigest()


def same_content(one: TensorStore, other: TensorStore) -> bool:
    """Whether two stores hold the same names, dtypes, shapes and bits; stops at the first difference."""
    if one.names != other.names:
        return False
    if any(one.dtype(name) != other.dtype(name) or one.shape(name) != other.shape(name) for name in one.names):
        return False
    # As bits: a NaN equals itself, and 0 is not -0.
    return all(torch.equal(_bits(one.tensor(name)), _bits(other.tensor(name))) for name in one.names)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter.

    Its config alone decides: a DPO + LoRA run leaves an unloadable `model.safetensors` beside the adapter.
    """
    return (folder / ADAPTER_CONFIG).is_file() or (
        (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file()
    )


def open_model(folder: Path) -> TensorStore:
    """The weights of a whole model, in one file or in shards.

    Raises:
        PaftError: No folder, config or weights; pickled weights; missing or corrupt shards; an adapter instead of a model.
    """
    _require_folder(folder)
    if is_adapter(folder):
        raise PaftError(
            f"{folder}: an adapter, where a whole model is wanted. Give the folder of the model it was trained on."
        )
    if not (folder / "config.json").is_file():
        raise PaftError(f"{folder}: no config.json, so no model.{_hint(folder)}")
    single, index = folder / MODEL_FILE, folder / MODEL_INDEX
    if single.is_file() and index.is_file():
        raise PaftError(
            f"{folder}: holds both {MODEL_FILE} and {MODEL_INDEX}; transformers would read the one and mergekit the other. "
            "Delete the one that is left over from an earlier run."
        )
    if single.is_file():
        store = TensorStore(folder, [single])
        raise_if_any(hollow(folder, store.names, store))
        return store
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise PaftError(f"{index}: no weight_map in it. Download it again, or repeat the run that writes it.")
        names = [
            shard
            for shard in shards.values()
            if isinstance(shard, str) and shard and Path(shard).name == printable(shard)
        ]
        if odd := [repr(shard) for shard in shards.values() if shard not in names]:
            raise PaftError(f"{index}: {some(odd)} is no file's name. Download it again.")
        store = TensorStore(folder, [folder / shard for shard in sorted(set(shards.values()))])
        if absent := sorted(set(shards) - set(store.names)):
            raise PaftError(f"{index}: names {some(absent)}, which no shard holds. Download the model again.")
        raise_if_any(hollow(folder, store.names, store))
        return store
    raise PaftError(_no_weights(folder, MODEL_FILE))


def open_adapter_weights(folder: Path) -> TensorStore:
    """The tensors of an adapter's `adapter_model.safetensors`; `PaftError` if there is none, or a pickled or corrupt one."""
    _require_folder(folder)
    file = folder / ADAPTER_FILE
    if not file.is_file():
        raise PaftError(_no_weights(folder, ADAPTER_FILE))
    return TensorStore(folder, [file])


def hollow(folder: Path, names: Sequence[str], store: TensorStore) -> list[str]:
    """A problem if some of these tensors have no entries."""
    floats = [name for name in names if store.dtype(name) in FLOATS]
    empty = [name for name in floats if 0 in store.shape(name)]
    if not empty:
        return []
    return [
        f"{folder}: {len(empty)} of its {len(floats)} tensors are empty ({some(empty)}), as DeepSpeed ZeRO-3 saves them where it "
        "does not gather them. Set stage3_gather_16bit_weights_on_model_save: true in its config and train again, or collect "
        "the last checkpoint with the zero_to_fp32.py that lies in it."
    ]


def tied_names(store: TensorStore) -> tuple[str, str] | None:
    """The names (input embedding, output head) if the model ties the two, so that a change of one is a change of both."""
    inputs = [name for name in store.names if name.endswith(INPUT_EMBEDDINGS)]
    if len(inputs) != 1:
        return None
    stored_head = next((name for name in store.names if name.endswith(OUTPUT_HEADS)), None)
    config = read_json(store.folder / "config.json")
    # A checkpoint without a head is tied even where its config leaves the flag to the architecture's default.
    if stored_head is None:
        return inputs[0], OUTPUT_HEADS[0]
    # transformers ties two stored tensors only if they are equal, whatever the config says.
    if config.get("tie_word_embeddings") and torch.equal(store.tensor(inputs[0]), store.tensor(stored_head)):
        return inputs[0], stored_head
    return None


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise PaftError(f"{folder}: no such folder. Check the path.")
    if not folder.is_dir():
        raise PaftError(f"{folder}: a file, where a folder is wanted. Give the folder that holds it.")


def _no_weights(folder: Path, wanted: str) -> str:
    pickles = sorted(
        path.name for pattern in PICKLES for path in folder.glob(pattern) if "training_args" not in path.name
    )
    if pickles:
        return (
            f"{folder}: its weights are pickled ({some(pickles)}), and unpickling can run any code. "
            "Save it again as safetensors: load it with transformers or PEFT and call save_pretrained()."
        )
    return f"{folder}: no {wanted}.{_hint(folder)}"


def _hint(folder: Path) -> str:
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir())
    if checkpoints:
        return f" It holds {some(checkpoints)}: its training was cut off. Finish it, or give a checkpoint's folder."
    return " Give the output folder of a finished run, or download the model again."
