"""A model's folder: there whole or not at all, its weights in safetensors files that are written tensor by tensor.

Nothing but the tensor at hand is in memory. The format wants its header, with every offset, at the front: its size is bounded
beforehand from the tensors' names, the space is left free, and the header is written there in the end, padded with blanks as
the format allows.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from paft_plugin.deltas.store import TensorStore
from paft_plugin.errors import PaftError, some
from paft_plugin.files import lock_file, write_json
from paft_plugin.fusion.merge.loaders import TORCH_DTYPES

DTYPES = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}
# Bytes of a tensor's entry in the header beside its name: dtype, offsets and a shape of up to eight axes.
ENTRY = 256
METADATA = {"__metadata__": {"format": "pt"}}
# Of a tensor that is read back, every so many-th byte is compared, and its first and last ones.
SAMPLED = 4096

Told = tuple[str, tuple[int, ...], int]
"""What a tensor is known again by: its dtype as safetensors calls it, its shape, and a checksum of some of its bytes."""


@contextmanager
def whole_folder(place: Path, beside: Collection[str] = ()) -> Iterator[Path]:
    """Yield a new folder to write to; when the context ends well, it is at `place`, and when it fails, it is gone.

    What a killed process left is removed by the next one for the same place. Files of the names `beside` may be at `place`
    already; they stay, and end up in the new folder.

    Raises:
        PaftError: `place` is taken, cannot be written, or another process writes for it at the moment.
    """
    check_free(place, beside)
    place = place.resolve()  # a link to an empty folder stays one, and two names of one place have one lock
    with _alone(place):
        partial = place.with_name(f".{place.name}.partial")
        if os.path.lexists(partial):
            shutil.rmtree(partial)
        try:
            partial.mkdir()
            yield partial
            _sync(partial)
            check_free(place, beside)
            _publish(partial, place, beside)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other processes from writing for `place`, by a lock beside it: in the folder it would have to go before the rename."""
    path = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(path)
    except BlockingIOError:
        raise PaftError(f"{place}: another merge is writing it. Wait for that, or give another folder.") from None
    except OSError as error:
        said = f"{place}: cannot be written ({error.strerror}). Give a folder that you may write to."
        raise PaftError(said) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _publish(partial: Path, place: Path, beside: Collection[str]) -> None:
    """Give the finished folder its name; what was there before goes along, and stays there should that fail."""
    kept = [name for name in beside if (place / name).exists()]
    try:
        for name in kept:
            (place / name).rename(partial / name)
        partial.rename(place)
    except BaseException:
        for name in kept:
            if (partial / name).exists():
                (partial / name).rename(place / name)
        raise
    _sync_entry(place)
    _sync_entry(place.parent)


def check_free(place: Path, beside: Collection[str] = ()) -> None:
    """Refuse a place where something else than `beside` is already.

    Raises:
        PaftError: It is a file, or a folder that is not empty.
    """
    if place.is_dir():
        if any(path.name not in beside for path in place.iterdir()):
            raise PaftError(f"{place}: exists and is not empty. Give another folder, or delete this one first.")
    elif place.exists() or place.is_symlink():
        raise PaftError(f"{place}: a file is there. Give another name for the folder.")


def _sync(folder: Path) -> None:
    for path in (*filter(Path.is_file, folder.rglob("*")), folder):
        _sync_entry(path)


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ShardedWriter:
    """Writes a model's tensors as they come, in files of at most `shard_size` bytes (a greater tensor has its own).

    `names` are those of all tensors that may come. Nothing in the folder is overwritten, and no name written twice; in the
    end the files are opened again and compared with what came.
    """

    def __init__(self, folder: Path, names: Iterable[str], shard_size: int) -> None:
        self._folder = folder
        self._shard_size = shard_size
        bound = sum(len(json.dumps(name)) + ENTRY for name in names) + ENTRY
        self._room = (bound + 7) // 8 * 8  # aligned to 8 bytes
        self._file: BinaryIO | None = None
        self._entries: list[dict[str, dict[str, object]]] = []
        self._told: dict[str, Told] = {}
        self._written = 0
        self._total = 0

    @property
    def names(self) -> set[str]:
        """Of the tensors that were written."""
        return set(self._told)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.

        Raises:
            PaftError: One of this name was written already.
        """
        if name in self._told:
            raise PaftError(
                f"{name}: merged twice, and a file can hold it once. Report this with the model's config.json."
            )
        content = tensor.detach().cpu().contiguous()
        self._told[name] = _told(content)
        size = content.numel() * content.element_size()
        if self._file is None or (self._written and self._written + size > self._shard_size):
            self._close_shard()
            self._open_shard()
        assert self._file is not None
        self._entries[-1][name] = {
            "dtype": DTYPES[content.dtype],
            "shape": list(content.shape),
            "data_offsets": [self._written, self._written + size],
        }
        self._file.write(content.flatten().view(torch.uint8).numpy().data)
        self._written += size
        self._total += size

    def finish(self) -> None:
        """Close the last file, and name the files as transformers expects them, with an index if there are several.

        Raises:
            PaftError: What can be read from the files is not what was written to them.
        """
        self._close_shard()
        check_held(self._folder, [_shard(self._folder, index) for index in range(len(self._entries))], self._told)
        count = len(self._entries)
        if count == 1:
            _shard(self._folder, 0).rename(self._folder / "model.safetensors")
            return
        places = {}
        for index, entries in enumerate(self._entries):
            name = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            _shard(self._folder, index).rename(self._folder / name)
            places.update(dict.fromkeys(entries, name))
        index_file = self._folder / "model.safetensors.index.json"
        write_json(index_file, {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))})

    def close(self) -> None:
        """Let go of an unfinished file."""
        if self._file is not None:
            self._file.close()

    def _open_shard(self) -> None:
        self._file = _shard(self._folder, len(self._entries)).open("xb")
        self._file.seek(8 + self._room)
        self._entries.append({})
        self._written = 0

    def _close_shard(self) -> None:
        if self._file is None:
            return
        header = json.dumps({**METADATA, **self._entries[-1]}, separators=(",", ":")).encode()
        assert len(header) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None


def check_held(folder: Path, files: list[Path], told: Mapping[str, Told]) -> None:
    """Open files that were just written, as any reader would, and refuse them if they hold anything else than was meant.

    Raises:
        PaftError: A file cannot be opened, or names, shapes, dtypes or sampled values differ.
    """
    store = TensorStore(folder, files)
    wrong = sorted(set(store.names) ^ set(told)) or [name for name in told if _told(store.tensor(name)) != told[name]]
    if wrong:
        raise PaftError(
            f"{some(wrong)}: not in the file as written. The disk or its file system may be failing. Merge again elsewhere."
        )


def _told(tensor: Tensor) -> Told:
    content = tensor.flatten().view(torch.uint8)
    # An odd step, so that not only one of the bytes of each number is looked at.
    step = content.numel() // SAMPLED | 1
    some_bytes = (content[:SAMPLED], content[::step], content[-SAMPLED:])
    checksum = zlib.crc32(torch.cat(some_bytes).numpy().data)
    return DTYPES[tensor.dtype], tuple(tensor.shape), checksum


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index}"
