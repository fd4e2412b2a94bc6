"""LoRA on bare parameters: fused experts against per-expert files, routers, biases; exact, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from paft_plugin.deltas.belongs import check_belongs
from paft_plugin.deltas.delta import open_delta
from tests.deltas.architectures import ARCHITECTURES, gpt_oss, mixtral, qwen3_vl_moe, save
from tests.deltas.builders import assert_same_delta, delta_as_saved, edit_config, make_adapter, make_base, make_model

PREFIX = "base_model.model."
GATE_UP, DOWN, BOTH = ["experts.gate_up_proj"], ["experts.down_proj"], ["experts.gate_up_proj", "experts.down_proj"]
PATTERNS = {"rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {r".*\.gate_up_proj": 3, "gate.weight": 20}}

CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "gate and up": (mixtral, {"target_parameters": GATE_UP}),
    "down": (mixtral, {"target_parameters": DOWN}),
    "both and the router": (mixtral, {"target_parameters": [*BOTH, "gate.weight"]}),
    "rslora": (mixtral, {"target_parameters": BOTH, "use_rslora": True}),
    "patterns": (mixtral, {"target_parameters": [*BOTH, "gate.weight"], **PATTERNS}),
    "rslora with patterns": (mixtral, {"target_parameters": BOTH, "use_rslora": True, **PATTERNS}),
    "names of transformers 4": (mixtral, {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]}),
    "one layer": (mixtral, {"target_parameters": ["layers.1.mlp.experts.down_proj"]}),
    "one expert": (lambda: mixtral(experts=1), {"target_parameters": BOTH}),
    "saved experts": (mixtral, {"modules_to_save": ["experts", "gate"]}),
    "qwen2-moe": (ARCHITECTURES["qwen2-moe"], {"target_parameters": ["gate_up_proj", "down_proj"]}),
    "qwen3-moe": (ARCHITECTURES["qwen3-moe"], {"target_parameters": BOTH}),
    "gpt-oss": (gpt_oss, {"target_parameters": BOTH}),
    "gpt-oss with equal sizes": (lambda: gpt_oss(intermediate_size=16), {"target_parameters": BOTH}),
    "gpt-oss with biases": (gpt_oss, {"target_parameters": ["experts.gate_up_proj_bias", *BOTH]}),
    "gpt-oss with trained biases": (gpt_oss, {"bias": "all"}),
    "matrices": (ARCHITECTURES["llama"], {"target_parameters": ["k_proj.weight", "up_proj.weight"]}),
    "matrices with patterns": (
        ARCHITECTURES["llama"],
        # The first pattern names the module, and PEFT matches the parameter: it does not apply.
        {"target_parameters": ["k_proj.weight"], "alpha_pattern": {"k_proj": 50, r"k_proj\.weight": 3}},
    ),
}


def adapt(base: Path, folder: Path, **lora: Any) -> Path:
    return make_adapter(base, folder, size=0.3, **{"target_modules": ["q_proj"], **lora})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(mixtral, tmp_path_factory.mktemp("models") / "base")


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize("case", CASES)
def test_delta_is_what_peft_merges_and_transformers_saves(case: str, tmp_path: Path) -> None:
    model, lora = CASES[case]
    base = save(model, tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", **lora)
    expected = delta_as_saved(base, adapter, tmp_path / "merged")
    assert_same_delta(base, adapter, expected, atol=1e-5)
    assert set(open_delta(base, adapter).names) == {name for name, change in expected.items() if change.any()}
    assert check_belongs(base, adapter) == []


def fused(folder: Path) -> Path:
    """The same model as transformers holds it in memory: experts fused, also in the file."""
    save(mixtral, folder, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(folder / "model.safetensors")
    return folder


def test_files_may_hold_fused_experts_too(base: Path, tmp_path: Path) -> None:
    whole = fused(tmp_path / "fused")
    adapter = adapt(base, tmp_path / "adapter", target_parameters=BOTH, base_model_name_or_path=None)
    apart, together = (dict(open_delta(folder, adapter).tensors()) for folder in (base, whole))
    experts = [f"model.layers.0.block_sparse_moe.experts.{expert}" for expert in range(4)]
    gate_up = [torch.cat([apart[f"{expert}.w1.weight"], apart[f"{expert}.w3.weight"]]) for expert in experts]
    torch.testing.assert_close(together["model.layers.0.mlp.experts.gate_up_proj"], torch.stack(gate_up))


def test_a_fused_model_is_a_branch_of_a_base_that_is_not(base: Path, tmp_path: Path) -> None:
    same = open_delta(base, fused(tmp_path / "fused"))
    assert set(same.names) == set(load_file(base / "model.safetensors"))
    assert not any(change.any() for _, change in same.tensors())
    moved = make_model(base, tmp_path / "moved")
    expected = dict(open_delta(base, moved).tensors())
    whole = load_file(tmp_path / "moved" / "model.safetensors")
    experts = "model.layers.1.block_sparse_moe.experts"
    down = torch.stack([whole.pop(f"{experts}.{expert}.w2.weight") for expert in range(4)])
    save_file({**whole, "model.layers.1.mlp.experts.down_proj": down}, moved / "model.safetensors")
    actual = dict(open_delta(base, moved).tensors())
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_an_adapter_of_transformers_4_has_factors_for_each_expert(base: Path, tmp_path: Path) -> None:
    """PEFT fuses these on loading; the files hold the very matrices that they were made for."""
    adapter = adapt(base, tmp_path / "adapter")
    torch.manual_seed(5)
    sizes = {"w1": (24, 16), "w3": (24, 16), "w2": (16, 24)}
    factors: dict[str, Tensor] = {}
    for layer in range(2):
        for expert in range(4):
            for matrix, (rows, columns) in sizes.items():
                module = f"{PREFIX}model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}"
                factors[f"{module}.lora_A.weight"] = torch.randn(4, columns) / 4
                factors[f"{module}.lora_B.weight"] = torch.randn(rows, 4) / 4
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), **factors}, file)
    edit_config(adapter, target_modules=["q_proj", "w1", "w2", "w3"])
    assert_same_delta(base, adapter, delta_as_saved(base, adapter, tmp_path / "merged"), atol=1e-5)


def test_another_number_of_experts_is_refused(base: Path, tmp_path: Path) -> None:
    other = save(lambda: mixtral(experts=3), tmp_path / "other")
    problem = only(check_belongs(other, adapt(base, tmp_path / "adapter", target_parameters=DOWN))[:1])
    assert "which 3 experts cannot share evenly" in problem
    copied = check_belongs(base, adapt(other, tmp_path / "copied", modules_to_save=["experts"]))
    assert "experts.3.w1.weight has shape ()" in copied[0]


def test_factors_that_are_missing_are_named(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", target_parameters=BOTH)
    file = adapter / "adapter_model.safetensors"
    inner = "model.layers.0.mlp.experts.base_layer"
    save_file({name: tensor for name, tensor in load_file(file).items() if inner not in name}, file)
    assert f"no factors for all of them ({inner} missing)" in only(check_belongs(base, adapter))


def test_a_base_that_transformers_does_not_know_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", target_parameters=DOWN, base_model_name_or_path=None)
    strange = save(mixtral, tmp_path / "strange")
    edit_config(strange, "config.json", model_type="strange", architectures=["StrangeForCausalLM"])
    problem = check_belongs(strange, adapter)[0]
    assert "target_parameters is set (experts.down_proj)" in problem
    assert f"transformers cannot build the model of {strange}/config.json" in problem


def test_what_transformers_does_more_to_than_stacking_is_refused(tmp_path: Path) -> None:
    """Qwen3-VL's files hold its experts transposed."""
    base = save(qwen3_vl_moe, tmp_path / "base")
    adapter = tmp_path / "adapter"
    lora = LoraConfig(target_modules=["q_proj"], target_parameters=DOWN)
    get_peft_model(qwen3_vl_moe(), lora).save_pretrained(adapter)
    problem = check_belongs(base, adapter)[0]
    assert "adapts model.language_model.layers.0.mlp.experts.down_proj, which transformers makes of" in problem
    assert "Transpose" in problem


def test_what_peft_cannot_merge_is_refused(tmp_path: Path) -> None:
    base = save(lambda: gpt_oss(num_local_experts=1, num_experts_per_tok=1), tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_parameters=DOWN)
    assert "a single expert" in check_belongs(base, adapter)[0]


def test_torchs_own_attention_is_refused_by_name(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(16, 2)})
    base = make_base(tmp_path / "base")
    save_file(dict(model.state_dict()), base / "model.safetensors")
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(target_modules=["attention"])).save_pretrained(adapter)
    problems = check_belongs(base, adapter)
    assert any("attention.base_layer.out_proj" in problem and "MultiheadAttention" in problem for problem in problems)
