"""The penalty on a real PEFT model is that of the deltas that PEFT itself would merge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from paft_plugin.errors import PaftError
from paft_plugin.penalty.injector import measure, penalise
from paft_plugin.penalty.live import find_live_deltas, take_references

LINEAR = ["q_proj", "v_proj", "down_proj"]
GRADIENT_STRENGTH = 0.01


def tiny_llama(tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tie,
        )
    )


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2, n_positions=32))


def with_adapter(model: nn.Module, **settings: object) -> PeftModel:
    """A PEFT model whose deltas are not zero any more."""
    peft_model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **settings}))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    return peft_model


ADAPTERS: dict[str, Callable[[], PeftModel]] = {
    "lora": lambda: with_adapter(tiny_llama()),
    "rslora": lambda: with_adapter(tiny_llama(), use_rslora=True),
    "patterns": lambda: with_adapter(tiny_llama(), rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}),
    "embedding": lambda: with_adapter(tiny_llama(), target_modules=["embed_tokens", "q_proj"]),
    "fan_in_fan_out": lambda: with_adapter(tiny_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True),
    "bf16": lambda: with_adapter(tiny_llama().bfloat16(), target_modules=["q_proj"]).bfloat16(),
}


def merged_deltas(model: PeftModel) -> list[Tensor]:
    """Each module's δ as PEFT computes it, with its graph."""
    return [module.get_delta_weight("default") for module in model.modules() if isinstance(module, LoraLayer)]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_norm_sparsity_and_gradients_are_those_of_the_deltas_that_peft_merges(kind: str) -> None:
    model = ADAPTERS[kind]()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if kind == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    expected = merged_deltas(model)
    (GRADIENT_STRENGTH * sum(delta.abs().sum() for delta in expected)).backward()
    gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
    model.zero_grad(set_to_none=True)

    measured = penalise(find_live_deltas(model, take_references(model), "delta"), GRADIENT_STRENGTH, (0.5,))

    entries = torch.cat([delta.detach().flatten().double() for delta in expected])
    assert measured.l1_norm == pytest.approx(entries.abs().sum().item(), rel=tolerance["rtol"])
    assert measured.sparsity[0.5] == pytest.approx((entries.abs() <= 0.5).double().mean().item(), abs=5e-3)
    assert measured.entries == entries.numel()
    for name, parameter in trainable(model).items():
        assert gradients[name] is not None
        torch.testing.assert_close(
            parameter.grad, gradients[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_factors_penalise_a_and_b_but_sparsity_stays_that_of_the_delta() -> None:
    model = with_adapter(tiny_llama())
    penalised = penalise(find_live_deltas(model, {}, "factors"), 0.5, (0.5,))
    product = measure(find_live_deltas(model, {}, "delta"), (0.5,))
    assert penalised.l1_norm == pytest.approx(sum(p.abs().sum().item() for p in trainable(model).values()), rel=1e-5)
    assert penalised.sparsity == product.sparsity
    for parameter in trainable(model).values():
        torch.testing.assert_close(parameter.grad, 0.5 * parameter.detach().sign())


@pytest.mark.parametrize("tie", [False, True])
def test_full_fine_tuning_penalises_every_parameter_once_against_the_base(tie: bool) -> None:
    model = tiny_llama(tie)
    references = take_references(model)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    measured = penalise(find_live_deltas(model, references, "delta"), 0.5, (0.1,))
    moved = {name: parameter.detach() - base[name] for name, parameter in model.named_parameters()}
    assert measured.entries == sum(delta.numel() for delta in moved.values())
    assert measured.l1_norm == pytest.approx(sum(delta.abs().sum().item() for delta in moved.values()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 0.5 * moved[name].sign())


def test_modules_to_save_are_penalised_against_their_originals() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    references = take_references(model)
    copy = next(p for name, p in model.named_parameters() if "modules_to_save" in name)
    with torch.no_grad():
        copy.add_(1.0)
    measured = measure(find_live_deltas(model, references, "delta"), ())
    assert measured.l1_norm == pytest.approx(copy.numel(), rel=1e-5)


def test_a_frozen_factor_gets_no_gradient() -> None:
    model = with_adapter(tiny_llama())
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    penalise(find_live_deltas(model, take_references(model), "delta"), 1.0, ())
    assert all((p.grad is not None) == p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "dora": ({"use_dora": True}, "DoraLinearVariant"),
    "trainable tokens": ({"trainable_token_indices": [1, 2]}, "trainable_tokens"),
    "lora bias": ({"lora_bias": True}, r"lora_B\.default\.bias"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_s_times_ba_is_refused_by_name(kind: str) -> None:
    settings, named = REFUSED[kind]
    model = with_adapter(tiny_llama(), **settings)
    with pytest.raises(PaftError, match=named):
        find_live_deltas(model, take_references(model), "delta")


def test_factors_without_an_adapter_are_refused() -> None:
    model = tiny_llama()
    with pytest.raises(PaftError, match="factors"):
        find_live_deltas(model, take_references(model), "factors")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(PaftError, match="nothing to penalise"):
        find_live_deltas(tiny_llama().requires_grad_(False), {}, "delta")
