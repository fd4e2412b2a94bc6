"""Adapters as another PEFT trained and saved them, and what they merged to then: `python -m tests.fusion.merge.golden` made them.

Written on 2026-11-28 with peft 0.20.0, transformers 5.16.1, mergekit 0.1.5 and torch 2.13.0 on a CPU. `sft` has rank and alpha
patterns, rsLoRA and a head that is trained in full; `preference` is plain LoRA, and both were trained for three steps of AdamW.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.deltas.builders import VOCABULARY, make_base
from tests.fusion.merge.tools import content, ours, reference, save

FOLDER = Path(__file__).with_name("golden")
BRANCHES: dict[str, dict[str, Any]] = {
    "sft": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 1},
        "alpha_pattern": {r"layers\.1\..*down_proj": 16},
        "modules_to_save": ["lm_head"],
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"],
    },
    "preference": {"target_modules": "all-linear"},
}
METHODS = ("ties", "task_arithmetic")


def merged_by_us(method: str, folder: Path) -> dict[str, Tensor]:
    """Both branches fused by a method."""
    base = FOLDER / "base"
    recipe = content(method, base, *(reference(base, FOLDER / name) for name in BRANCHES))
    return ours(save(recipe, folder / f"{method}.yml"))


def merged_by_peft(name: str) -> dict[str, Tensor]:
    """One branch merged into its base by the installed PEFT."""
    base = AutoModelForCausalLM.from_pretrained(FOLDER / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(FOLDER / name)).merge_and_unload()
    return {key: tensor.detach().contiguous() for key, tensor in merged.state_dict().items()}


def expected(name: str) -> dict[str, Tensor]:
    """What a method, or PEFT for one branch, gave then."""
    return load_file(FOLDER / f"{name}.safetensors")


def _train(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "base", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **BRANCHES[name]))
    optimizer = torch.optim.AdamW((each for each in adapted.parameters() if each.requires_grad), lr=0.02)
    for _ in range(3):
        tokens = torch.randint(VOCABULARY, (2, 8))  # (rows, tokens)
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.peft_config["default"].base_model_name_or_path = "base"  # wherever this checkout lies
    adapted.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink(missing_ok=True)


def main() -> None:
    """Write the folder anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_base(FOLDER / "base", hidden_size=16, intermediate_size=24)
    for seed, name in enumerate(BRANCHES):
        _train(name, seed)
        save_file(merged_by_peft(name), FOLDER / f"{name}.safetensors")
    for method in METHODS:
        save_file(merged_by_us(method, FOLDER), FOLDER / f"{method}.safetensors")
        (FOLDER / f"{method}.yml").unlink()


if __name__ == "__main__":
    main()
