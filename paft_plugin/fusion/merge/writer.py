"""Safetensors files written tensor by tensor: nothing but the tensor at hand is in memory.

The format wants its header, with every offset, at the front. Its size is bounded beforehand from the tensors' names, the
space is left free, and the header is written there in the end, padded with blanks as the format allows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from paft_plugin.files import write_json

DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    },
}
# Bytes of a tensor's entry in the header beside its name: dtype, offsets and a shape of up to eight axes.
ENTRY = 256
METADATA = {"__metadata__": {"format": "pt"}}


class ShardedWriter:
    """Writes a model's tensors as they come, in files of at most `shard_size` bytes (a greater tensor has its own).

    Args:
        folder: Where the files go; nothing there is overwritten.
        names: Of all tensors that may come.
        shard_size: In bytes.
    """

    def __init__(self, folder: Path, names: Iterable[str], shard_size: int) -> None:
        self._folder = folder
        self._shard_size = shard_size
        self._room = _aligned(sum(len(json.dumps(name)) + ENTRY for name in names) + ENTRY)
        self._file: BinaryIO | None = None
        self._entries: list[dict[str, dict[str, object]]] = []
        self._written = 0
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        content = tensor.detach().cpu().contiguous()
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
        """Close the last file, and name the files as transformers expects them, with an index if there are several."""
        self._close_shard()
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


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index}"


def _aligned(size: int) -> int:
    return (size + 7) // 8 * 8
