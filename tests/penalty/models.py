"""Tiny models, adapters that PEFT puts on them, and what the penalty of those must be by plain autograd in fp64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from paft_plugin.penalty.find import find_live_deltas, take_references, trained_themselves
from paft_plugin.penalty.live import FullDelta, LiveDelta
from paft_plugin.penalty.settings import L1On
from paft_plugin.penalty.tally import LiveTally, tally

VOCABULARY = 50
LINEAR = ["q_proj", "v_proj", "down_proj"]


def tiny_llama(tie: bool = False, **changes: Any) -> LlamaForCausalLM:
    """Two layers with grouped attention, so that not every weight is square."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | changes), tie_word_embeddings=tie))


def tiny_gpt2() -> GPT2LMHeadModel:
    """Its Conv1D layers store their weights transposed."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=2, n_positions=32))


def tiny_mixtral(experts: int) -> MixtralForCausalLM:
    """One layer, whose experts are fused into two 3-D parameters."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    routing = {"num_local_experts": experts, "num_experts_per_tok": min(2, experts)}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, **routing))


def token_rows() -> Tensor:
    return torch.randint(0, VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(0))


def with_lora(model: nn.Module, **settings: Any) -> PeftModel:
    """`model` with a fresh adapter: its delta is still zero."""
    return get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **settings}))


def live(model: nn.Module, l1_on: L1On = "delta") -> list[LiveDelta]:
    """The live deltas of a model that still holds the base model's weights."""
    return find_live_deltas(model, take_references(trained_themselves(model), "device"), l1_on)


@torch.no_grad()
def move(model: nn.Module) -> None:
    """What training does: every trainable parameter goes elsewhere."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def deltas_in_double(
    model: nn.Module, base: dict[str, Tensor], adapters: Sequence[str] = ("default",)
) -> tuple[list[Tensor], dict[str, nn.Parameter]]:
    """Every δ with its graph, as PEFT would merge it, and the trainable parameters of the fp64 twin that it hangs on.

    Args:
        model: what has been trained.
        base: every parameter before training, by name.
        adapters: the active ones.
    """
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.double()
    layers = [module for module in twin.modules() if isinstance(module, LoraLayer)]
    deltas = [layer.get_delta_weight(adapter) for layer in layers for adapter in adapters]
    deltas += [p - base[name].double() for name, p in trainable(twin).items() if "lora_" not in name]
    return deltas, trainable(twin)


def entries_of(deltas: Sequence[Tensor]) -> Tensor:
    return torch.cat([delta.detach().flatten() for delta in deltas])


def clear_threshold(entries: Tensor) -> float:
    """A threshold near the median magnitude, as far as can be from any entry, so that rounding moves none across."""
    magnitudes = entries.abs().sort().values
    middle = magnitudes[len(magnitudes) // 3 : 2 * len(magnitudes) // 3 + 2]
    widest = middle.diff().argmax()
    return (middle[widest] + middle[widest + 1]).item() / 2


def of_entries(entries: Tensor) -> LiveTally:
    """The tally of a parameter whose δ is `entries`."""
    return tally(FullDelta("weight", nn.Parameter(entries.clone()), torch.zeros_like(entries)), ())
