"""Tensors on disk: read one at a time, the same for any sharding and path, and known by their content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paft_plugin.deltas.delta import open_delta
from paft_plugin.deltas.store import open_model, same_content
from tests.deltas.builders import make_adapter, make_base, make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base")
    make_adapter(base, folder / "adapter")
    make_model(base, folder / "model")
    make_model(base, folder / "shards", max_shard_size="20KB")
    return folder


def test_sharding_and_metadata_are_no_content(models: Path) -> None:
    whole, shards = open_model(models / "model"), open_model(models / "shards")
    assert whole.names == shards.names
    assert same_content(whole, shards)
    assert whole.fingerprint == shards.fingerprint
    assert not same_content(whole, open_model(models / "base"))


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def rename_one(file: Path) -> None:
    tensors = load_file(file)
    tensors["model.norm.weight2"] = tensors.pop("model.norm.weight")
    save_file(tensors, file)


def flatten_one(file: Path) -> None:
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].reshape(-1)
    save_file(tensors, file)


def reinterpret_one(file: Path) -> None:
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].view(torch.int32)
    save_file(tensors, file)


@pytest.mark.parametrize("change", [flip_last_bit, rename_one, flatten_one, reinterpret_one])
def test_the_smallest_change_of_content_shows(models: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Even where size, times and path are as before."""
    copy = Path(shutil.copytree(models / "base", tmp_path / "copy"))
    file = copy / "model.safetensors"
    before, stat = open_model(copy), file.stat()
    fingerprint = before.fingerprint
    assert same_content(before, open_model(models / "base"))
    shutil.move(file, tmp_path / "kept")  # a file that is mapped must not change
    shutil.copy(tmp_path / "kept", file)
    change(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_model(copy).fingerprint != fingerprint
    assert not same_content(open_model(copy), open_model(models / "base"))


def test_an_adapter_retrained_at_the_same_path_is_another_one(models: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(models / "adapter", tmp_path / "adapter"))
    first = open_delta(models / "base", adapter).fingerprint()
    make_adapter(models / "base", adapter, seed=7)
    assert open_delta(models / "base", adapter).fingerprint() != first
    make_adapter(models / "base", adapter, seed=1)
    assert open_delta(models / "base", adapter).fingerprint() == first


def test_the_order_in_which_peft_writes_a_set_is_no_content(models: Path, tmp_path: Path) -> None:
    targets = ["k_proj.weight", "up_proj.weight"]
    adapter = make_adapter(models / "base", tmp_path / "adapter", target_modules=["q_proj"], target_parameters=targets)
    file = adapter / "adapter_config.json"
    fingerprints = set()
    for order in (targets, targets[::-1]):
        file.write_text(json.dumps({**json.loads(file.read_text()), "target_parameters": order}))
        fingerprints.add(open_delta(models / "base", adapter).fingerprint())
    assert len(fingerprints) == 1


MEASURE = """
import sys
from pathlib import Path
from paft_plugin.deltas.delta import open_delta

def anonymous():  # what cannot be dropped and read from the file again
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

delta = open_delta(Path(sys.argv[1]), Path(sys.argv[2]))
delta.one(delta.names[0])
before = highest = anonymous()
for name, change in delta.tensors():
    change.abs().sum()
    highest = max(highest, anonymous())
print(highest - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_memory_does_not_grow_with_the_layers(tmp_path: Path, kind: str) -> None:
    """Two and sixteen layers of 3 MB each take the same memory beside the mapped files."""
    shape = {"hidden_size": 256, "intermediate_size": 1024}
    taken = []
    for layers in (2, 16):
        base = make_base(tmp_path / f"base-{layers}", num_hidden_layers=layers, **shape)
        make = make_adapter if kind == "adapter" else make_model
        branch = make(base, tmp_path / f"branch-{layers}")
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, str(base), str(branch)], capture_output=True, text=True, check=True
        )
        taken.append(float(run.stdout.split()[-1]))
    assert taken[1] < taken[0] + 4, taken
