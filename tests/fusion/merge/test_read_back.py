"""What was written is opened again before the folder gets its name: a name given twice or other bytes, and there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge.writer import ShardedWriter

TENSORS = {
    "a": torch.arange(20_000, dtype=torch.float32),
    "b": torch.ones(3, 4, dtype=torch.bfloat16),
    "c": torch.tensor(2.0),
    "d": torch.zeros(0, 4),
}


def writer_of(folder: Path, tensors: dict[str, Tensor], shard_size: int = 10**6) -> ShardedWriter:
    writer = ShardedWriter(folder, tensors, shard_size)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    return writer


@pytest.mark.parametrize("shard_size", [16, 10**6])
def test_what_was_written_can_be_read(shard_size: int, tmp_path: Path) -> None:
    writer_of(tmp_path, TENSORS, shard_size).finish()


def test_a_name_is_written_once(tmp_path: Path) -> None:
    writer = writer_of(tmp_path, TENSORS)
    with pytest.raises(PaftError, match="b: merged twice"):
        writer.add("b", TENSORS["b"])
    writer.close()


@pytest.mark.parametrize("name", ["a", "b"])
def test_bytes_that_came_out_otherwise_are_found(name: str, tmp_path: Path) -> None:
    writer = writer_of(tmp_path, TENSORS)
    begin, _ = writer._entries[0][name]["data_offsets"]  # type: ignore[misc]
    assert writer._file is not None
    writer._file.seek(8 + writer._room + begin)
    writer._file.write(b"\x7f\x7f")
    with pytest.raises(PaftError, match=f"^{name}: not in the file as written"):
        writer.finish()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("change", [{"dtype": "F16"}, {"shape": [4, 3]}, {"data_offsets": [0, 24]}])
def test_a_header_that_says_otherwise_is_found(change: dict[str, object], tmp_path: Path) -> None:
    writer = writer_of(tmp_path, TENSORS)
    writer._entries[0]["b"] |= change
    with pytest.raises(PaftError, match=r"b: not in the file as written|corrupt"):
        writer.finish()


def test_a_tensor_that_the_header_lacks_is_found(tmp_path: Path) -> None:
    writer = writer_of(tmp_path, TENSORS)
    del writer._entries[0]["d"]
    with pytest.raises(PaftError, match="d: not in the file as written"):
        writer.finish()
