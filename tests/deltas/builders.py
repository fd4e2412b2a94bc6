"""Small random models, real PEFT adapters and a real tokenizer, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from paft_plugin.deltas.delta import open_delta

VOCABULARY = 64
UNKNOWN = "<unk>"
TEMPLATE = "{{ messages[0]['content'] }} base"


def make_base(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A Llama of some 20 000 parameters, with grouped attention so that not every weight is square."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **shape,
        **config,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    return folder


def make_gpt2(folder: Path) -> Path:
    """A GPT-2, whose Conv1D layers store their weights transposed; its `attn.c_proj` is square."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path, template: str = TEMPLATE) -> None:
    """A word-level tokenizer with three tokens fewer than the model has rows, as in a padded vocabulary."""
    words = {**{f"w{index}": index for index in range(VOCABULARY - 4)}, UNKNOWN: VOCABULARY - 4}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=UNKNOWN)), unk_token=UNKNOWN
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def make_adapter(base: Path, folder: Path, seed: int = 1, size: float = 0.02, **lora: Any) -> Path:
    """An adapter in which everything trainable has moved (so B ≠ 0, and trained copies differ); `size` 0 leaves B at 0."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)
    peft_model.save_pretrained(folder)
    return folder


def make_model(base: Path, folder: Path, seed: int = 2, size: float = 0.02, **save: Any) -> Path:
    """A full model with every weight moved away from the base's."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    model.save_pretrained(folder, **save)
    return folder


def load_peft(base: Path, adapter: Path) -> PeftModel:
    """The adapter on its base, in fp32, as PEFT loads it."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    """Weights of base + adapter, by PEFT's own `merge_and_unload`."""
    merged: PreTrainedModel = load_peft(base, adapter).merge_and_unload()
    return merged.state_dict()


def delta_by_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    """θ − θ_pre of every tensor in the base's file, in fp32, without any code of ours."""
    merged = merged_by_peft(base, adapter)
    return {name: merged[name] - tensor.float() for name, tensor in weights(base).items()}


def delta_as_saved(base: Path, adapter: Path, scratch: Path) -> dict[str, Tensor]:
    """θ − θ_pre in fp64 of every tensor, by the names in the files: PEFT merges, transformers saves, no code of ours."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(scratch)
    before, after = weights(base), weights(scratch)
    assert before.keys() == after.keys()
    return {name: after[name] - before[name].double() for name in before}


def assert_same_delta(base: Path, branch: Path, expected: dict[str, Tensor], atol: float = 2e-7) -> None:
    """Every tensor of the delta as expected, and no change in the tensors that the delta does not name."""
    delta = dict(open_delta(base, branch).tensors())
    for name, change in expected.items():
        ours = delta.pop(name, torch.zeros_like(change)).to(change.dtype)
        torch.testing.assert_close(ours, change, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert not delta


def edit_config(folder: Path, file: str = "adapter_config.json", **changes: Any) -> None:
    """Change some keys of a branch's JSON file."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of an unsharded model."""
    return load_file(folder / "model.safetensors")
