"""A delta on disk must be what PEFT adds to the base, or what a model differs from it, whatever the branch is stored as."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paft_plugin.deltas.delta import open_delta
from tests.deltas.builders import (
    assert_same_delta,
    delta_by_peft,
    edit_config,
    load_peft,
    make_adapter,
    make_base,
    make_gpt2,
    make_model,
    weights,
)

PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
    "alpha_pattern": {r"layers\.0\..*_proj": 3, "k_proj": 20},
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "rslora with patterns": {"use_rslora": True, **PATTERNS},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "saved modules": {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]},
    "trained biases": {"bias": "all"},
    "lora bias": {"target_modules": ["q_proj", "o_proj"], "lora_bias": True},
    "random initialisation": {"init_lora_weights": False},
    "orthogonal initialisation": {"init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base", attention_bias=True)


@pytest.mark.parametrize("kind", KINDS)
def test_delta_of_an_adapter_is_what_peft_merges(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    expected = delta_by_peft(base, adapter)
    assert sum(bool(change.any()) for change in expected.values()) >= 4
    assert_same_delta(base, adapter, expected)


def test_a_saved_layer_below_the_factors_counts_too(base: Path, tmp_path: Path) -> None:
    # PEFT saves the embedding itself beside its factors, and loads it over the base's.
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    file = adapter / "adapter_model.safetensors"
    layer = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file({**(tensors := load_file(file)), layer: tensors[layer] + 0.5}, file)
    assert_same_delta(base, adapter, delta_by_peft(base, adapter))


@pytest.mark.parametrize("kind", ["lora", "rslora with patterns", "embeddings"])
def test_delta_of_a_weight_is_pefts_delta_weight_to_the_bit(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    layers = {
        f"{name.removeprefix('base_model.model.')}.weight": layer.get_delta_weight("default")
        for name, layer in load_peft(base, adapter).named_modules()
        if isinstance(layer, LoraLayer)
    }
    delta = dict(open_delta(base, adapter).tensors())
    assert set(delta) == set(layers)
    assert all(torch.equal(delta[name], layers[name]) for name in layers)


@pytest.mark.parametrize("targets", [["c_attn", "c_fc", "c_proj"], ["c_attn", "attn.c_proj"]])
def test_conv1d_weights_are_transposed_the_square_one_too(tmp_path: Path, targets: list[str]) -> None:
    base = make_gpt2(tmp_path / "gpt2")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=targets)
    assert_same_delta(base, adapter, delta_by_peft(base, adapter))
    # PEFT notes the flag of the last module that it adapted; the shapes tell, whatever the flag says.
    expected = delta_by_peft(base, adapter)
    edit_config(adapter, fan_in_fan_out=False)
    assert_same_delta(base, adapter, expected)
    # Also where the file goes by other names than the loaded model, as the hub's GPT-2 does.
    without = {name.removeprefix("transformer."): tensor for name, tensor in weights(base).items()}
    save_file(without, base / "model.safetensors")
    assert_same_delta(base, adapter, {name.removeprefix("transformer."): change for name, change in expected.items()})


def test_delta_of_a_bf16_base_and_adapter_is_computed_in_fp32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", size=1e-4)
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {name: tensor.float() for name, tensor in load_file(file).items()}
    expected = 2.0 * (factors[f"{q}.lora_B.weight"] @ factors[f"{q}.lora_A.weight"])
    delta = dict(open_delta(base, adapter).tensors())["model.layers.0.self_attn.q_proj.weight"]
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta, expected, atol=1e-9, rtol=1e-6)


def test_tied_base_has_its_embedding_once(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in weights(base)
    model = open_delta(base, make_model(base, tmp_path / "model"))
    assert "model.embed_tokens.weight" in model.names
    assert "lm_head.weight" not in model.names
    saved = {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True}
    adapter = make_adapter(base, tmp_path / "adapter", **saved)
    assert_same_delta(base, adapter, delta_by_peft(base, adapter))


def test_a_duplicate_head_in_a_tied_base_counts_once(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tied", tie_word_embeddings=True)
    branch = make_model(base, tmp_path / "model")
    before = open_delta(base, branch).names
    tensors = weights(base)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    assert open_delta(base, branch).names == before


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"]])
def test_rows_of_a_grown_vocabulary_are_no_part_of_the_delta(base: Path, tmp_path: Path, targets: list[str]) -> None:
    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(70)
    grown.save_pretrained(tmp_path / "grown")
    adapter = make_adapter(tmp_path / "grown", tmp_path / "adapter", target_modules=targets)
    # What a training run leaves that resized the base itself: the resized copies in the adapter.
    copies = {"embed_tokens": "base_model.model.model.embed_tokens", "lm_head": "base_model.model.lm_head"}
    file = adapter / "adapter_model.safetensors"
    full = {
        key: weights(tmp_path / "grown")[key.removeprefix("base_model.model.") + ".weight"] for key in copies.values()
    }
    layer = ".base_layer" if "embed_tokens" in targets else ""
    add = {
        f"{copies['embed_tokens']}{layer}.weight": full[copies["embed_tokens"]],
        f"{copies['lm_head']}.weight": full[copies["lm_head"]],
    }
    save_file({**load_file(file), **add}, file)

    delta = open_delta(base, adapter)
    assert delta.grown == {"model.embed_tokens.weight": 6, "lm_head.weight": 6}
    change = dict(delta.tensors())["model.embed_tokens.weight"]
    assert change.shape == (64, 32)
    assert bool(change.any()) == ("embed_tokens" in targets)


def test_delta_of_a_model_is_the_difference_sharded_or_not(base: Path, tmp_path: Path) -> None:
    whole = make_model(base, tmp_path / "whole")
    shards = make_model(base, tmp_path / "shards", max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    expected = {name: tensor - weights(base)[name] for name, tensor in weights(whole).items()}
    for branch in (whole, shards):
        assert_same_delta(base, branch, expected)
    assert open_delta(base, whole).fingerprint() == open_delta(base, shards).fingerprint()
    assert open_delta(shards, whole).kind == "model"


def test_a_stray_model_file_beside_an_adapter_is_ignored(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "dpo")
    expected = delta_by_peft(base, adapter)
    save_file({"base_model.model.lm_head.base_layer.weight": torch.ones(2)}, adapter / "model.safetensors")
    shutil.copy(base / "config.json", adapter)
    assert open_delta(base, adapter).kind == "adapter"
    assert_same_delta(base, adapter, expected)


def test_fingerprint_is_of_the_content_alone(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    first = open_delta(base, adapter).fingerprint()
    moved = shutil.copytree(adapter, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    edit_config(moved, lora_dropout=0.3, base_model_name_or_path="elsewhere", target_modules=["other order"])
    assert open_delta(base, moved).fingerprint() == first

    edit_config(moved, lora_alpha=9)
    assert open_delta(base, moved).fingerprint() != first
    retrained = make_adapter(base, adapter, seed=5)
    assert open_delta(base, retrained).fingerprint() != first
    other_base = make_base(tmp_path / "other", seed=3, attention_bias=True)
    assert open_delta(other_base, retrained).fingerprint() != open_delta(base, retrained).fingerprint()
