"""Small random models of the architectures that people fuse: adapters on them merge as with `mergekit-yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from paft_plugin.fusion.merge import open_fusion, write_fusion
from tests.deltas.builders import make_adapter, merged_by_peft, weights
from tests.fusion.merge.by_hand import SHAPE, loaded, with_tensors
from tests.fusion.merge.tools import METHODS, SEED, assert_same, by_mergekit, content, ours, reference, save

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8},
    "Gemma3Text": {"head_dim": 8},
    "Phi3": {},
    "GPTNeoX": {},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {**EXPERTS, "head_dim": 8},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}
# mergekit has no definition of these. It would look at the checkpoints instead, which it cannot for an adapter:
# its assertion "LoRA not merged". The branches are then given to it as whole models.
UNDEFINED = ("Qwen2Moe",)
# Their files have a tensor for each expert, and ours keep that; transformers joins those of a layer as it loads them, and
# mergekit merges and writes the joined ones. What both make of the rest is the same, but for what is drawn on the way.
JOINED = ("Mixtral", "Qwen3Moe", "Qwen2Moe")
# mergekit's definition asks for buffers that transformers has not saved for years: it cannot merge these at all. Ours takes them
# for optional; what it makes of the rest is compared with PEFT in tests/fusion/adapter/.
OUTDATED = ("GPTNeoX",)
WEIGHT = METHODS["task_arithmetic"][0]["weight"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_adapters_on(name: str, method: str, tmp_path: Path) -> None:
    base = make(name, tmp_path / "base")
    # PEFT's "all-linear" takes in fused experts, which are parameters and no modules: deltas of another kind.
    targets = ATTENTION if {"num_experts", "num_local_experts"} & set(ARCHITECTURES[name]) else "all-linear"
    branches = [
        make_adapter(base, tmp_path / branch, seed, target_modules=targets)
        for seed, branch in enumerate(("sft", "dpo"), start=1)
    ]
    recipe = content(method, base, *(reference(base, branch) for branch in branches), out_dtype="bfloat16")
    file = save(recipe, tmp_path / "recipe.yml")
    if name in OUTDATED:
        with pytest.raises(RuntimeError, match="required but not present"):
            by_mergekit(file, tmp_path)
        assert set(ours(file)) == set(weights(base))
        return
    merged = ours(file)
    if name in UNDEFINED:
        with pytest.raises(AssertionError, match="LoRA not merged"):
            by_mergekit(file, tmp_path)
        if method == "dare_ties":
            return  # what PEFT draws in between depends on who merges the adapters
        models = [materialise(base, branch) for branch in branches]
        file = save({**recipe, **content(method, base, *map(reference, models))}, tmp_path / "models.yml")
    if name not in JOINED:
        assert_same(merged, by_mergekit(file, tmp_path))
        return
    assert set(merged) == set(weights(base))
    if method != "dare_ties":
        models = (
            with_tensors(base, tmp_path / who, made)
            for who, made in (("we", merged), ("it", by_mergekit(file, tmp_path)))
        )
        assert_same(*(loaded(model)[0] for model in models))


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_adapters_on_fused_experts_are_summed(name: str, tmp_path: Path) -> None:
    """Against what PEFT merges of each branch; mergekit itself cannot merge such adapters."""
    base = make(name, tmp_path / "base")
    settings = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    branches = [make_adapter(base, tmp_path / str(seed), seed, **settings) for seed in (1, 2)]
    recipe = content("task_arithmetic", base, *(reference(base, branch) for branch in branches), out_dtype="float32")
    write_fusion(open_fusion(save(recipe, tmp_path / "recipe.yml"), SEED, "cpu"), tmp_path / "out")
    (merged, _), (before, _) = loaded(tmp_path / "out"), loaded(base)
    one, other = (merged_by_peft(base, branch) for branch in branches)
    changed = 0
    for key, tensor in before.items():
        expected = tensor + WEIGHT * ((one[key] - tensor) + (other[key] - tensor))
        torch.testing.assert_close(merged[key], expected, rtol=0, atol=1e-6, msg=key)
        changed += not torch.equal(merged[key], tensor)
    assert changed == 2 * 2  # of each layer, and no more


def make(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **ARCHITECTURES[name]})
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def materialise(base: Path, branch: Path) -> Path:
    """Base + adapter as a whole model, by PEFT."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(merged_by_peft(base, branch))
    folder = branch.with_name(f"{branch.name}-model")
    model.save_pretrained(folder)
    return folder
