"""Any split of a delta's rows gives the delta, and factors multiply to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paft_plugin.deltas import Delta, open_delta
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
