"""Estimates of memory and disk, held against what PyTorch, PEFT and Transformers really make on small models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from paft_plugin.pipeline.estimate.disk import estimate_disk
from paft_plugin.pipeline.estimate.memory import ADDED, Memory, estimate_memory, trained_shapes
from paft_plugin.pipeline.estimate.shapes import count, weight_shapes

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "llama": lambda **others: LlamaForCausalLM(LlamaConfig(**{**SHAPE, **others})),
    "mistral": lambda **others: MistralForCausalLM(MistralConfig(**{**SHAPE, **others})),
    "qwen2": lambda **others: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "tie_word_embeddings": True, **others})),
}
FULL: dict[str, Any] = {"micro_batch_size": 2, "sequence_len": 32, "optimizer": "adamw_torch"}
LORA = {**FULL, "adapter": "lora", "lora_r": 4, "lora_target_linear": True}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A small model, and the folder that it was saved in."""
    torch.manual_seed(0)
    model = FAMILIES[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def parameters(model: nn.Module, *, trained_only: bool = False) -> int:
    return sum(each.numel() for each in model.parameters() if each.requires_grad or not trained_only)


def config_alone(folder: Path, to: Path) -> Path:
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def test_headers_give_the_exact_number_of_parameters(family: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = family
    assert count(weight_shapes(folder)) == parameters(model)
    guessed = count(weight_shapes(config_alone(folder, tmp_path / "config alone")))
    assert guessed == pytest.approx(parameters(model), rel=0.01), "without weights: all but biases"


@pytest.mark.parametrize(
    ("keys", "peft"),
    [
        ({"lora_target_linear": True}, {"target_modules": "all-linear"}),
        ({"lora_target_modules": ["q_proj", "down_proj"]}, {"target_modules": ["q_proj", "down_proj"]}),
        ({"lora_target_modules": r".*\.mlp\.(up|down)_proj"}, {"target_modules": r".*\.mlp\.(up|down)_proj"}),
        (
            {"lora_target_modules": ["v_proj"], "lora_modules_to_save": ["embed_tokens"]},
            {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
        ),
    ],
)
def test_an_adapter_has_as_many_parameters_as_peft_makes(
    tmp_path: Path, keys: dict[str, Any], peft: dict[str, Any]
) -> None:
    model = FAMILIES["llama"]()
    model.save_pretrained(tmp_path)
    config = {**FULL, "adapter": "lora", "lora_r": 4, **keys}
    adapted = get_peft_model(model, LoraConfig(r=4, **peft))
    assert count(trained_shapes(config, weight_shapes(tmp_path))) == parameters(adapted, trained_only=True)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("keys", [8, 2])
def test_activations_are_those_that_torch_saves(tmp_path: Path, adapter: bool, half: bool, keys: int) -> None:
    """Never less than a decoder layer saves for the backward pass, and not much more; layers alone, by difference."""
    saved = {layers: _saved(tmp_path, layers, keys, adapter=adapter, half=half) for layers in (1, 3)}
    config = {**(LORA if adapter else FULL), "micro_batch_size": 1, "sequence_len": 128, "bf16": half}
    estimated = {layers: estimate_memory(config, tmp_path / str(layers)).activations for layers in (1, 3)}
    assert 0.97 <= (estimated[3] - estimated[1]) / (saved[3] - saved[1]) <= 1.25


def _saved(folder: Path, layers: int, keys: int, *, adapter: bool, half: bool) -> int:
    """Bytes of what the forward pass of a Llama with so many layers keeps for the backward pass, parameters aside."""
    torch.manual_seed(0)
    model = FAMILIES["llama"](
        hidden_size=256, intermediate_size=704, num_hidden_layers=layers, num_key_value_heads=keys
    )
    model.save_pretrained(folder / str(layers))
    if half:
        model = model.to(torch.bfloat16)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    ids = torch.randint(0, SHAPE["vocab_size"], (1, 128))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model(input_ids=ids, labels=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_weights_gradients_and_optimizer_of_full_fine_tuning(family: tuple[nn.Module, Path]) -> None:
    model, folder = family
    memory = estimate_memory(FULL, folder)
    size = 4 * parameters(model)
    assert (memory.weights, memory.gradients, memory.optimizer) == (size, size, 2 * size)
    optimizer = torch.optim.AdamW(model.parameters())
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    states = (
        t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.dim()
    )
    assert memory.optimizer == sum(state.nbytes for state in states)


def test_what_makes_it_more_and_what_less(family: tuple[nn.Module, Path]) -> None:
    _, folder = family

    def total(config: dict[str, Any]) -> int:
        return estimate_memory(config, folder).total

    more = [
        ({"micro_batch_size": 4}, FULL),
        ({"sequence_len": 64}, FULL),
        ({"rl": "dpo"}, FULL),
        ({"rl": "dpo"}, LORA),
        ({"paft_l1_lambda": 1e-6}, FULL),
        ({"lora_r": 64}, LORA),
        ({"lora_dropout": 0.1}, LORA),
        ({"lora_modules_to_save": ["embed_tokens"]}, LORA),
        ({"attn_implementation": "eager"}, FULL),
    ]
    less = [
        ({"bf16": True}, FULL),
        ({"gradient_checkpointing": True}, FULL),
        ({"optimizer": "adamw_bnb_8bit"}, FULL),
        ({"optimizer": "paged_adamw_8bit"}, FULL),
        ({"adapter": "lora", "lora_r": 4, "lora_target_linear": True}, FULL),
        ({"adapter": "qlora", "load_in_4bit": True}, LORA),
        ({"adapter": "lora", "load_in_8bit": True}, LORA),
        ({"cut_cross_entropy": True}, FULL),
    ]
    assert all(total({**config, **keys}) > total(config) for keys, config in more)
    assert all(total({**config, **keys}) < total(config) for keys, config in less)
    assert total({**FULL, "paft_l1_lambda": 0.1, "paft_reference": "host"}) == total(FULL)
    assert total({**LORA, "rl": "orpo"}) < total({**LORA, "rl": "dpo"}), "ORPO has no reference"
    assert estimate_memory({**FULL, "rl": "dpo"}, folder).reference == estimate_memory(FULL, folder).weights
    memory = estimate_memory(FULL, folder)
    parts = [value for value in vars(memory).values() if not isinstance(value, str)]
    assert memory.total == round(sum(parts) * (1 + ADDED))


def test_a_known_model_by_its_config_alone(tmp_path: Path) -> None:
    """Llama-3-8B's config, whose parameters its makers count as 8.03 B; QLoRA with rank 16 and 4096 tokens fits in 24 GB."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
            }
        )
    )  # fmt: skip
    assert count(weight_shapes(tmp_path)) == pytest.approx(8.03e9, rel=1e-3)
    qlora = {
        "adapter": "qlora", "load_in_4bit": True, "bf16": True, "lora_r": 16, "lora_target_linear": True,
        "micro_batch_size": 1, "sequence_len": 2048, "gradient_checkpointing": True, "optimizer": "adamw_bnb_8bit",
    }  # fmt: skip
    memory = estimate_memory(qlora, tmp_path)
    assert memory.weights == pytest.approx(0.53 * 6.98e9 + 4 * 1.05e9, rel=0.01)
    assert memory.adapter == 4 * 41_943_040, "PEFT's own count for rank 16 on all linear layers"
    assert memory.total < 24e9
    assert estimate_memory({**qlora, "load_in_4bit": False}, tmp_path).total > 20e9


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"fsdp_version": 2, "fsdp_config": {"a": 1}}, "fsdp_config splits the model"),
        ({"deepspeed": "zero3.json"}, "deepspeed splits the model"),
        ({"micro_batch_size": None}, "micro_batch_size is not set"),
    ],
)
def test_what_is_not_known_is_said(family: tuple[nn.Module, Path], keys: dict[str, Any], why: str) -> None:
    memory = estimate_memory({**FULL, **keys}, family[1])
    assert memory.total == 0
    assert memory.unknown.startswith(why)


def test_a_base_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    for text in (None, "{", "[]", "{}", '{"hidden_size": 8}'):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        assert "no config.json and weights" in estimate_memory(FULL, tmp_path).unknown
        assert estimate_disk(FULL, tmp_path) == 0
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    assert estimate_memory(FULL, tmp_path) == Memory(unknown=estimate_memory(FULL, tmp_path).unknown)


def test_disk_is_what_is_saved_and_each_checkpoint_with_the_optimizer(family: tuple[nn.Module, Path]) -> None:
    model, folder = family
    size = 4 * parameters(model)
    small = 4 << 20
    none = estimate_disk({**FULL, "save_strategy": "no"}, folder)
    assert size <= none <= size + small
    three = estimate_disk({**FULL, "save_total_limit": 2}, folder)
    assert none + 3 * 3 * size <= three <= none + 3 * (3 * size + small), "two are kept, and one more is written"
    assert estimate_disk(FULL, folder) > three, "axolotl keeps four"
    few = estimate_disk({**FULL, "max_steps": 10, "save_steps": 10}, folder)
    assert none + 3 * size <= few <= none + 3 * size + small
    adapter = estimate_disk({**LORA, "save_strategy": "no"}, folder)
    assert adapter < none
    assert estimate_disk({**LORA, "save_strategy": "no", "rl": "dpo"}, folder) == adapter + size, "TRL leaves a model"
