"""Any split of a delta's rows gives the delta, and factors multiply to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paft_plugin.deltas.delta import Delta, open_delta
from paft_plugin.deltas.store import TensorStore
from paft_plugin.errors import PaftError
from tests.deltas.builders import make_adapter, make_base, make_gpt2, make_model


def by_rows(delta: Delta, name: str, step: int) -> torch.Tensor:
    height = delta.base.shape(name)[0]
    rows = delta.rows(name)
    return torch.cat([rows(start, min(start + step, height)) for start in range(0, height, step)])


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"modules_to_save": ["lm_head"], "bias": "all"},
        {"target_modules": ["q_proj", "embed_tokens"], "lora_bias": False},
        {"trainable_token_indices": [3, 60]},
    ],
)
def test_rows_of_an_adapter_add_up_to_its_delta(tmp_path: Path, lora: dict) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    delta = open_delta(base, make_adapter(base, tmp_path / "adapter", **lora))
    for name, whole in delta.tensors():
        torch.testing.assert_close(by_rows(delta, name, 7), whole, atol=1e-7, rtol=1e-5)
        if (factors := delta.factors(name)) is not None:
            torch.testing.assert_close(factors[0] @ factors[1], whole, atol=1e-7, rtol=1e-5)


def test_factors_have_the_orientation_of_the_base(tmp_path: Path) -> None:
    base = make_gpt2(tmp_path / "base")
    delta = open_delta(base, make_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"]))
    for name, whole in delta.tensors():
        left, right = delta.factors(name)  # type: ignore[misc]
        torch.testing.assert_close(left @ right, whole, atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(by_rows(delta, name, 5), whole, atol=1e-7, rtol=1e-5)


def test_rows_of_a_model_are_those_of_its_delta(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    delta = open_delta(base, make_model(base, tmp_path / "model"))
    for name, whole in delta.tensors():
        assert torch.equal(by_rows(delta, name, 7), whole)
        assert delta.factors(name) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_slices_are_the_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"matrix": torch.randn(23, 5), "experts": torch.randn(3, 4, 5), "vector": torch.randn(9)}
    tensors = {name: tensor.to(dtype) for name, tensor in (tensors | {"scalar": torch.tensor(2.0)}).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    store = TensorStore(tmp_path, [tmp_path / "model.safetensors"])
    for name, tensor in tensors.items():
        whole, read = torch.atleast_1d(tensor), store.slices(name)
        parts = [read(start, min(start + 2, len(whole))).clone() for start in range(0, len(whole), 2)]
        assert torch.equal(torch.cat(parts), whole)
        store.read_ahead(name)


def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"matrix": torch.randn(1000, 1000)}, file)
    read = TensorStore(tmp_path, [file]).slices("matrix")
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(PaftError, match="truncated while"):
        read(999, 1000)
