"""Layers and kinds of modules, as architectures name them."""

from __future__ import annotations

import pytest

from paft_plugin.inspection.inspected import place_of


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3, "self_attn.q_proj"),
        ("model.layers.31.self_attn.q_proj.bias", 31, "self_attn.q_proj.bias"),
        ("model.layers.0.input_layernorm.weight", 0, "input_layernorm"),
        ("model.layers.2.mlp.experts.17.up_proj.weight", 2, "mlp.experts.*.up_proj"),
        ("model.language_model.layers.5.mlp.down_proj.weight", 5, "mlp.down_proj"),
        ("transformer.h.11.attn.c_attn.weight", 11, "attn.c_attn"),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h.weight", 1, "mlp.dense_h_to_4h"),
        ("model.embed_tokens.weight", None, "embed_tokens"),
        ("model.language_model.embed_tokens.weight", None, "embed_tokens"),
        ("transformer.wte.weight", None, "wte"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "lm_head"),
    ],
)
def test_place(name: str, layer: int | None, module: str) -> None:
    assert place_of(name) == (layer, module)
