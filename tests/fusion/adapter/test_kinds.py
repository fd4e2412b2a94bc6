"""What adapters and architectures come in: base + fused adapter through PEFT is the merged model for each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from paft_plugin.deltas.store import open_model
from paft_plugin.errors import PaftError
from paft_plugin.fusion.adapter import write_adapter
from paft_plugin.fusion.adapter.peft_model import Slot, open_live
from paft_plugin.fusion.merge import open_fusion
from tests.deltas.builders import (
    VOCABULARY,
    make_adapter,
    make_base,
    make_gpt2,
    make_model,
    make_tokenizer,
    merged_by_peft,
    weights,
)
from tests.fusion.adapter.branches import Branches, Write, assert_same, fused_model, through_peft
from tests.fusion.merge.tools import content, reference, save

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_attention_heads": 2}


def phi3() -> PreTrainedModel:
    """Its q, k, v and its gate, up are one matrix each."""
    return Phi3ForCausalLM(Phi3Config(**SIZES, **TOKENS, num_key_value_heads=1))


def starcoder2() -> PreTrainedModel:
    """Its linear layers and its norms have biases."""
    return Starcoder2ForCausalLM(
        Starcoder2Config(**SIZES, **TOKENS, num_key_value_heads=1, use_bias=True, tie_word_embeddings=False)
    )


def gpt_neox() -> PreTrainedModel:
    """Its files call the head `embed_out`."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **TOKENS))


def saved(model: Callable[[], PreTrainedModel]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        model().save_pretrained(folder)
        return folder

    return make


def tied(folder: Path) -> Path:
    return make_base(folder, tie_word_embeddings=True)


SAVED = {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]}
TIED = {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True}
KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], dict[str, Any]]] = {
    "phi3": (saved(phi3), {}, {"target_modules": ["qkv_proj", "down_proj"]}),
    "gpt-neox": (saved(gpt_neox), {}, {"target_modules": ["query_key_value", "dense"]}),
    "starcoder2": (saved(starcoder2), {}, {"target_modules": ["q_proj", "c_fc"]}),
    "biases": (saved(starcoder2), {"bias": "all"}, {"lora_bias": True, "target_modules": ["q_proj"]}),
    "norms with biases": (saved(starcoder2), {"modules_to_save": ["input_layernorm"]}, {}),
    "conv1d": (make_gpt2, {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}, {"fan_in_fan_out": True}),
    "embeddings": (make_base, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, {}),
    "embeddings twice": (make_base, *[{"target_modules": ["embed_tokens", "q_proj"]}] * 2),
    "modules to save": (make_base, SAVED, {}),
    "a copy and factors": (make_base, SAVED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied": (tied, TIED, {"target_modules": ["q_proj", "v_proj"]}),
}


def make_branches(folder: Path, kind: str) -> Branches:
    make, sft, dpo = KINDS[kind]
    base = make(folder / "base")
    make_tokenizer(base)
    make_adapter(base, folder / "sft", seed=1, **sft)
    make_adapter(base, folder / "dpo", seed=2, r=3, **dpo)
    return Branches(folder)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_makes_the_merged_model_of_it(tmp_path: Path, write: Write, kind: str, method: str) -> None:
    branches = make_branches(tmp_path / "branches", kind)
    inputs = ({"weight": 0.8}, {"weight": 0.5})
    recipe = branches.recipe(tmp_path / "recipe.yml", method, *inputs, dtype="float32")
    out, _ = write(recipe, None if method == "task_arithmetic" else 96, max_error=1e-5)
    renamed = {"embed_out.weight": "lm_head.weight"}
    expected = {renamed.get(name, name): tensor for name, tensor in fused_model(recipe).items()}
    assert_same(through_peft(branches, out), expected, within=1e-6 if method == "task_arithmetic" else 1e-5)


def test_a_parameter_that_peft_adapts_has_no_factors_to_put_side_by_side(tmp_path: Path, write: Write) -> None:
    base = make_base(tmp_path / "branches" / "base")
    make_tokenizer(base)
    settings = {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]}
    make_adapter(base, tmp_path / "branches" / "sft", seed=1, **settings)
    make_adapter(base, tmp_path / "branches" / "dpo", seed=2)
    branches = Branches(tmp_path / "branches")
    recipe = branches.recipe(
        tmp_path / "recipe.yml", "task_arithmetic", {"weight": 0.8}, {"weight": 0.5}, dtype="float32"
    )
    with pytest.raises(PaftError, match="--rank"):
        write(recipe)
    out, _ = write(recipe, 96, max_error=1e-5)
    assert_same(through_peft(branches, out), fused_model(recipe), within=1e-5)


def test_embedding_factors_stay_factors_and_what_a_branch_copied_is_a_copy(tmp_path: Path, write: Write) -> None:
    held = {}
    for kind in ("embeddings twice", "a copy and factors"):
        branches = make_branches(tmp_path / kind, kind)
        recipe = branches.recipe(tmp_path / f"{kind}.yml", "task_arithmetic", {"weight": 1.0}, {"weight": 1.0})
        held[kind] = load_file(write(recipe)[0] / "adapter_model.safetensors")
    embedding = "base_model.model.model.embed_tokens."
    assert held["embeddings twice"][f"{embedding}lora_embedding_A"].shape == (7, VOCABULARY)
    assert held["embeddings twice"][f"{embedding}lora_embedding_B"].shape == (32, 7)
    assert held["a copy and factors"][f"{embedding}weight"].shape == (VOCABULARY, 32)


def test_factors_are_fp32_and_copies_have_the_dtype_that_peft_loads_them_in(tmp_path: Path, write: Write) -> None:
    branches = Branches(tmp_path / "branches")
    base = make_base(branches["base"], dtype=torch.bfloat16)
    make_adapter(base, branches["sft"], seed=1, modules_to_save=["norm"])
    make_adapter(base, branches["dpo"], seed=2)
    recipe = branches.recipe(tmp_path / "recipe.yml", "task_arithmetic", {"weight": 1.0}, {"weight": 1.0})
    out, written = write(recipe)
    for key, tensor in load_file(out / "adapter_model.safetensors").items():
        assert tensor.dtype == (torch.float32 if "lora_" in key else torch.bfloat16), key
    assert any("no tokenizer" in warning for warning in written.warnings)


def test_only_some_modules_of_a_name_are_targets_by_their_full_names(tmp_path: Path, write: Write) -> None:
    branches = Branches(tmp_path / "branches")
    base = make_base(branches["base"], num_hidden_layers=12)
    make_adapter(base, branches["sft"], seed=1, target_modules=["layers.1.self_attn.q_proj", "v_proj"])
    make_adapter(base, branches["dpo"], seed=2, target_modules=["layers.1.self_attn.v_proj"])
    recipe = branches.recipe(
        tmp_path / "recipe.yml", "task_arithmetic", {"weight": 1.0}, {"weight": 1.0}, dtype="float32"
    )
    out, _ = write(recipe)
    config = json.loads((out / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["model.layers.1.self_attn.q_proj", "v_proj"]
    assert config["r"] == 8
    assert config["rank_pattern"]["^model.layers.11.self_attn.v_proj"] == 4
    assert_same(through_peft(branches, out), fused_model(recipe))


def test_a_vocabulary_that_the_merge_resizes_is_refused_by_name(
    tmp_path: Path, branches: Branches, write: Write
) -> None:
    # mergekit gives the embeddings as many rows as its tokenizer has tokens: three fewer than the base.
    content = {"tokenizer": {"source": "base"}}
    recipe = branches.recipe(tmp_path / "recipe.yml", "task_arithmetic", {"weight": 1.0}, {"weight": 1.0}, **content)
    with pytest.raises(PaftError, match=r"weight: the fused tensor has shape \(61, 32\), the base's \(64, 32\)"):
        write(recipe, 8)


def test_the_loaded_models_names_are_found_for_those_of_the_files(tmp_path: Path) -> None:
    base = saved(gpt_neox)(tmp_path / "base")
    live = open_live(open_model(base))
    assert live.slots["embed_out.weight"] == Slot("lm_head", "weight", "linear")
    assert live.slots["gpt_neox.embed_in.weight"].transposed
    assert set(live.slots) == set(open_model(base).names)
    assert {slot.parameter for slot in live.slots.values()} == {name for name, _ in live.model.named_parameters()}


def test_old_buffers_in_a_checkpoint_are_no_change(tmp_path: Path, write: Write) -> None:
    branches = make_branches(tmp_path / "branches", "gpt-neox")
    file = branches["base"] / "model.safetensors"
    buffers = {}
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        buffers[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        buffers[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{attention}.rotary_emb.inv_freq"] = torch.rand(2)
    save_file({**load_file(file), **buffers}, file, metadata={"format": "pt"})
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", {"weight": 1.0}, {"weight": 1.0}, dtype="float32")
    out, written = write(recipe, 16)
    assert {one.module.rpartition(".")[2] for one in written.errors} == {
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    }
    merged, fused = through_peft(branches, out), fused_model(recipe)
    name = "gpt_neox.layers.1.attention.dense.weight"
    torch.testing.assert_close(merged[name], fused[name], atol=1e-5, rtol=0)


def test_a_whole_models_change_of_a_renamed_head_is_a_copy_of_the_head(tmp_path: Path, write: Write) -> None:
    branches = make_branches(tmp_path / "branches", "gpt-neox")
    full = make_model(branches["base"], branches["full"])
    half = {"weight": 0.5}
    recipe = branches.recipe(
        tmp_path / "recipe.yml", "task_arithmetic", {**half, "branch": str(full)}, half, dtype="float32"
    )
    out, _ = write(recipe, 16)
    merged, fused = through_peft(branches, out), fused_model(recipe)
    torch.testing.assert_close(merged["lm_head.weight"], fused["embed_out.weight"], atol=1e-6, rtol=0)
    assert "lm_head" in json.loads((out / "adapter_config.json").read_text())["modules_to_save"]


def test_an_embedding_tied_to_the_head_changes_both(tmp_path: Path, write: Write) -> None:
    branches = make_branches(tmp_path / "branches", "tied")
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", {"weight": 1.0}, {"weight": 1.0}, dtype="float32")
    merged = through_peft(branches, write(recipe, 32)[0])
    base = open_model(branches["base"]).tensor("model.embed_tokens.weight")
    assert not torch.equal(merged["model.embed_tokens.weight"], base)
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def test_tensors_that_mergekits_definition_lacks_go_into_the_adapter(tmp_path: Path) -> None:
    """Its definition of Llama knows no biases: what the branches train of them is in the adapter as copies."""
    base = make_base(tmp_path / "base", attention_bias=True, mlp_bias=True)
    branches = [make_adapter(base, tmp_path / str(seed), seed=seed, bias="all") for seed in (1, 2)]
    recipe = save(content("task_arithmetic", base, *(reference(base, one) for one in branches)), tmp_path / "r.yml")
    write_adapter(open_fusion(recipe, device="cpu"), tmp_path / "out")
    merged, (one, other) = merged_by_peft(base, tmp_path / "out"), (merged_by_peft(base, one) for one in branches)
    changed = set()
    for name, tensor in weights(base).items():
        expected = tensor + 0.6 * (one[name] - tensor + other[name] - tensor)
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6, msg=name)
        if not torch.equal(merged[name], tensor):
            changed.add(name)
    assert any(name.endswith("bias") for name in changed)
