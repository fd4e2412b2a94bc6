"""Every way to train that is penalised: norm, sparsity and subgradient are those of the δ that PEFT itself would merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from paft_plugin.penalty.live import measure
from tests.penalty.models import (
    clear_threshold,
    copies,
    deltas_in_double,
    entries_of,
    live,
    move,
    tiny_gpt2,
    tiny_llama,
    tiny_mixtral,
    token_rows,
    trainable,
    with_lora,
)

STRENGTH = 0.01
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


class Attention(nn.Module):
    """torch's own attention, whose query, key and value share one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2)


def quantised(folder: Path, config: BitsAndBytesConfig) -> PeftModel:
    """QLoRA as axolotl sets it up; bitsandbytes' CPU kernels want widths of at least 64."""
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return with_lora(model, modules_to_save=["lm_head"])


TRAINED: dict[str, Callable[[Path], nn.Module]] = {
    "full": lambda _: tiny_llama(),
    "full, tied": lambda _: tiny_llama(tie=True),
    "full in bf16": lambda _: tiny_llama().bfloat16(),
    "linear": lambda _: with_lora(tiny_llama()),
    "rslora": lambda _: with_lora(tiny_llama(), use_rslora=True),
    "patterns": lambda _: with_lora(tiny_llama(), rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}),
    "rslora with patterns": lambda _: with_lora(tiny_llama(), use_rslora=True, rank_pattern={"q_proj": 3}),
    "embedding": lambda _: with_lora(tiny_llama(), target_modules=["embed_tokens", "q_proj"]),
    "fan_in_fan_out": lambda _: with_lora(tiny_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True),
    "bf16": lambda _: with_lora(tiny_llama().bfloat16()).bfloat16(),
    "bf16 base, fp32 adapter": lambda _: with_lora(tiny_llama().bfloat16()),
    "replicated layers": lambda _: with_lora(tiny_llama(), layer_replication=[(0, 2), (1, 2)]),
    "torch attention": lambda _: with_lora(Attention(), target_modules=["attention"]),
    "experts": lambda _: with_lora(tiny_mixtral(3), target_modules=["q_proj"], target_parameters=EXPERTS),
    "experts in bf16": lambda _: with_lora(
        tiny_mixtral(3).bfloat16(), target_modules=[], target_parameters=EXPERTS
    ).bfloat16(),
    "experts, rslora": lambda _: with_lora(
        tiny_mixtral(2), target_modules=[], target_parameters=EXPERTS, use_rslora=True
    ),
    "one expert": lambda _: with_lora(tiny_mixtral(1), target_modules=[], target_parameters=EXPERTS),
    "2-D parameter": lambda _: with_lora(
        tiny_llama(), target_modules=[], target_parameters=["q_proj.weight", "v_proj.weight"]
    ),
    "modules to save": lambda _: with_lora(tiny_llama(), modules_to_save=["lm_head", "embed_tokens"]),
    "module to save around a target": lambda _: with_lora(tiny_llama(), modules_to_save=["mlp"]),
    "trainable tokens": lambda _: with_lora(
        tiny_llama(), trainable_token_indices={"embed_tokens": [1, 7], "lm_head": [3]}
    ),
    "trainable tokens, tied": lambda _: with_lora(tiny_llama(tie=True), trainable_token_indices=[1, 7]),
    "biases": lambda _: with_lora(tiny_llama(attention_bias=True), bias="all"),
    "4 bits": lambda folder: quantised(
        folder, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    ),
    "8 bits": lambda folder: quantised(folder, BitsAndBytesConfig(load_in_8bit=True)),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_norm_sparsity_and_gradients_are_those_of_the_deltas_that_peft_merges(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), live(model)
    assert measure(deltas, (0.0,)).sparsity == {0.0: 1.0}
    move(model)
    expected, twins = deltas_in_double(model, base)
    (STRENGTH * sum(delta.abs().sum() for delta in expected)).backward()
    entries = entries_of(expected)
    threshold = clear_threshold(entries)

    measured = measure(deltas, (threshold,))
    for delta in deltas:
        delta.add_subgradient(STRENGTH)

    assert measured.entries == entries.numel()
    assert measured.l1_norm == pytest.approx(entries.abs().sum().item(), rel=1e-6)
    assert measured.sparsity[threshold] == (entries.abs() <= threshold).sum().item() / entries.numel()
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, name
        # A gradient in bf16 is rounded once.
        tolerance = {"rtol": torch.finfo(parameter.dtype).eps * 8, "atol": 1e-5}
        torch.testing.assert_close(
            parameter.grad.double(), twins[name].grad, **tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("kind", TRAINED)
def test_every_trainable_parameter_is_in_exactly_one_delta(kind: str, tmp_path: Path) -> None:
    """Without its task loss, a model has gradients just where it is trained, and each delta makes its own."""
    model = TRAINED[kind](tmp_path)
    deltas = live(model)
    move(model)
    seen: list[str] = []
    for delta in deltas:
        model.zero_grad(set_to_none=True)
        delta.add_subgradient(1.0)
        seen += [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert sorted(seen) == sorted(trainable(model))
    assert len({delta.name for delta in deltas}) == len(deltas)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_sample_is_of_the_deltas_own_entries(kind: str, tmp_path: Path) -> None:
    """All entries, each once, in whatever order; and the same entry wherever it stands in a sample."""
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), live(model)
    move(model)
    expected, _ = deltas_in_double(model, base)
    whole = [delta.sample(torch.arange(delta.entries)) for delta in deltas]
    torch.testing.assert_close(
        torch.cat(whole).double().sort().values, entries_of(expected).sort().values, rtol=1e-4, atol=1e-5
    )
    for delta, entries in zip(deltas, whole, strict=True):
        indices = torch.randint(delta.entries, (20,), generator=torch.Generator().manual_seed(0))
        picked = delta.sample(indices)
        assert picked.dtype == torch.float32
        torch.testing.assert_close(picked, entries[indices])


def test_a_quantised_base_is_trained_and_penalised_on_a_cpu(tmp_path: Path) -> None:
    """The subgradient joins the gradients of a real backward through the 4-bit base."""
    model = TRAINED["4 bits"](tmp_path)
    deltas, ids = live(model), token_rows()
    move(model)
    model(input_ids=ids, labels=ids).loss.backward()
    task = {name: parameter.grad.clone() for name, parameter in trainable(model).items()}
    for delta in deltas:
        delta.add_subgradient(STRENGTH)
    both = {name: parameter.grad.clone() for name, parameter in trainable(model).items()}
    model.zero_grad(set_to_none=True)
    for delta in deltas:
        delta.add_subgradient(STRENGTH)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(both[name], task[name] + parameter.grad)
        assert task[name].any()
