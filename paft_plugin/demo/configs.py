"""The axolotl configs of the demo's branches: stock ones, and the one of the sparse SFT branch that adds the plugin's keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.files import write_text

SEED = 42
LAMBDA = 1e-4


@dataclass(frozen=True)
class Effort:
    """How long the branches train, in optimizer steps."""

    sft_steps: int
    preference_steps: int


FULL = Effort(sft_steps=200, preference_steps=120)
QUICK = Effort(sft_steps=120, preference_steps=80)

# A CPU has neither these precisions nor these kernels, and axolotl turns them on by itself.
CPU_ONLY = {
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
}


def write_configs(run_dir: Path, effort: Effort) -> None:
    """Write `configs/*.yml` into the run directory, one for each training."""
    sft = _sft(run_dir, effort)
    configs = {
        "sft": ("SFT without a penalty: stock axolotl.", sft),
        "sft-l1": (
            "SFT with λ‖δ‖₁: the same, and the plugin.",
            {**sft, "plugins": ["paft_plugin.PAFTPlugin"], "paft_l1_lambda": LAMBDA},
        ),
        "dpo": ("DPO: stock axolotl.", _dpo(run_dir, effort, run_dir / "base")),
        "orpo": ("ORPO: stock axolotl.", _orpo(run_dir, effort)),
        "sequential": (
            "The sequential baseline: DPO on the SFT model instead of the base model.",
            _dpo(run_dir, effort, run_dir / "models" / "sft" / "merged"),
        ),
    }
    for name, (purpose, content) in configs.items():
        content = {**content, "output_dir": str(run_dir / "branches" / name)}
        content["dataset_prepared_path"] = str(run_dir / "prepared" / name)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(run_dir / "configs" / f"{name}.yml", f"# {purpose}\n{text}")


def _common(base_model: Path, steps: int, learning_rate: float) -> dict[str, Any]:
    return {
        "base_model": str(base_model),
        "chat_template": "tokenizer_default",
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "sequence_len": 64,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "lr_scheduler": "linear",
        "optimizer": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 10,
        "save_strategy": "no",
        "seed": SEED,
        **CPU_ONLY,
    }


def _data(path: Path, kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"path": str(path), "ds_type": "json", "split": "train", "type": kind, **fields}]


def _sft(run_dir: Path, effort: Effort) -> dict[str, Any]:
    return {
        **_common(run_dir / "base", effort.sft_steps, 5e-4),
        "datasets": _data(run_dir / "data" / "sft.jsonl", "chat_template"),
        "micro_batch_size": 64,
        "pad_to_sequence_len": False,  # axolotl pads to 64 otherwise, and these rows are 25 tokens long
        "warmup_steps": 20,
    }


def _dpo(run_dir: Path, effort: Effort, base_model: Path) -> dict[str, Any]:
    return {
        **_common(base_model, effort.preference_steps, 6e-4),
        "rl": "dpo",
        "rl_beta": 3.0,  # at 0.1 the pairs drag the answers' own likelihood down (LOG.md)
        "datasets": _data(run_dir / "data" / "preference.jsonl", "chat_template.default", field_messages="question"),
        "micro_batch_size": 32,
        "warmup_steps": 20,
    }


def _orpo(run_dir: Path, effort: Effort) -> dict[str, Any]:
    return {
        **_common(run_dir / "base", effort.preference_steps, 6e-4),
        "rl": "orpo",
        "orpo_alpha": 1.0,
        "remove_unused_columns": False,
        "datasets": _data(run_dir / "data" / "preference.jsonl", "chat_template.argilla"),
        "micro_batch_size": 32,
        "warmup_steps": 20,
    }
