"""Every tensor of the base is in the merged model, whether mergekit's definition of its architecture lists it or not.

Models are compared as transformers loads them, with one whose files were added up by hand: mergekit may give tensors other names.
mergekit loses the biases of Llama (its issue 696), routed experts behind dense layers, and more: paft_plugin/fusion/LOG.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge import open_fusion, write_fusion
from tests.deltas.builders import make_base
from tests.fusion.merge.by_hand import SHAPE, branch, loaded, summed, with_tensors
from tests.fusion.merge.tools import content, load_all, ours, reference, save

ATTENTION = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
UNLISTED: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({"attention_bias": True, "mlp_bias": True}, 14),
    "qwen3": ({"attention_bias": True, "head_dim": 8}, 8),
    "gemma2": ({"attention_bias": True, "head_dim": 8}, 8),
    "mixtral": ({"num_local_experts": 4}, 0),
    "deepseek_v3": ({**ATTENTION, **EXPERTS, "n_group": 1, "topk_group": 1}, 12),
}
"""Model type → its config, and how many of its tensors mergekit's definition lacks."""
WEIGHT = 0.6  # of each branch, in METHODS["task_arithmetic"]


def make(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SHAPE | UNLISTED[kind][0])))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # biases start at 0
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", UNLISTED)
def test_it_is_the_sum_by_hand(kind: str, tmp_path: Path) -> None:
    base = make(kind, tmp_path / "base")
    branches = [branch(base, tmp_path / name, seed) for seed, name in enumerate(("sft", "dpo"))]
    fusion = open_fusion(save(content("task_arithmetic", base, *map(reference, branches)), tmp_path / "r.yml"))
    assert len(fusion.lacking) == UNLISTED[kind][1]
    warnings = write_fusion(fusion, tmp_path / "out")
    assert any("definition of this architecture lacks" in warning for warning in warnings) == bool(fusion.lacking)
    assert set(load_all(tmp_path / "out")) == set(load_all(base))
    expected, nothing = loaded(with_tensors(base, tmp_path / "by hand", summed(base, branches, WEIGHT)))
    got, missing = loaded(tmp_path / "out")
    assert missing == nothing == set()
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("method", ["dare_ties", "ties", "breadcrumbs"])
def test_what_no_branch_changes_stays(method: str, tmp_path: Path) -> None:
    plain = make_base(tmp_path / "plain")
    extra = {"model.layers.1.extra.weight": torch.randn(8, 4), "model.table": torch.arange(5)}
    base = with_tensors(plain, tmp_path / "base", load_all(plain) | extra)
    branches = [
        with_tensors(base, tmp_path / f"{seed}", load_all(branch(plain, tmp_path / f"plain {seed}", seed)) | extra)
        for seed in (1, 2)
    ]
    merged = ours(save(content(method, base, *map(reference, branches), dtype="bfloat16"), tmp_path / "r.yml"))
    assert set(merged) == set(load_all(base))
    assert torch.equal(merged["model.layers.1.extra.weight"], extra["model.layers.1.extra.weight"].bfloat16())
    assert torch.equal(merged["model.table"], extra["model.table"]), "whole numbers are no weights"
    assert not torch.equal(merged["model.norm.weight"], load_all(base)["model.norm.weight"].bfloat16())


def test_it_follows_a_gradient_over_the_layers(tmp_path: Path) -> None:
    plain = make("llama", tmp_path / "plain")
    more = {"model.scale": torch.ones(3), "model.norm.bias": torch.ones(32)}
    base = with_tensors(plain, tmp_path / "base", load_all(plain) | more)
    sft = branch(base, tmp_path / "sft", 1)
    recipe = content("task_arithmetic", base, reference(sft))
    recipe["models"][0]["parameters"] = {"weight": [0.25, 0.75]}
    before, trained = load_all(base), load_all(sft)
    for name, tensor in ours(save(recipe, tmp_path / "gradient.yml")).items():
        weight = 0.75 if ".layers.1." in name else 0.25
        torch.testing.assert_close(tensor, before[name] + weight * (trained[name] - before[name]), msg=name)


def test_it_is_refused_where_it_cannot_go_along(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base")
    branches = [branch(base, tmp_path / name, seed) for seed, name in enumerate(("sft", "dpo"))]
    sources = [{"model": reference(folder), "layer_range": [0, 2]} for folder in branches]
    sliced = {
        "merge_method": "linear",
        "slices": [{"sources": [one | {"parameters": {"weight": 1}} for one in sources]}],
    }
    with pytest.raises(PaftError, match=r"cannot go along in slices"):
        open_fusion(save(sliced, tmp_path / "sliced.yml"))


def test_a_tensor_of_a_branch_alone_is_told_of(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    other = branch(base, tmp_path / "other", 1)
    save_file(
        load_all(other) | {"v_head.weight": torch.ones(1, 32)}, other / "model.safetensors", metadata={"format": "pt"}
    )
    recipe = content("task_arithmetic", base, reference(other), reference(branch(base, tmp_path / "third", 2)))
    fusion = open_fusion(save(recipe, tmp_path / "r.yml"))
    assert set(dict(fusion.tensors())) == set(load_all(base))
    assert any("v_head.weight: the base model has no such tensors" in note for note in fusion.notes)
