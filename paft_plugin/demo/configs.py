"""The axolotl configs of the demo's branches: stock ones, and the one of the SFT branch that adds the plugin's keys."""

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


FOLDER = Path("axolotl")
"""Where the demo's axolotl configs lie; what axolotl is given in the end is in the run's `configs/`."""


def write_configs(run_dir: Path, effort: Effort) -> None:
    """Write `axolotl/*.yml` into the run directory, one for each branch; the run names base model and output folder."""
    configs = {
        "sft": ("The SFT branch: stock axolotl, and the plugin with λ‖δ‖₁.", sft_config(effort)),
        "dpo": ("The preference branch, DPO: stock axolotl.", dpo_config(effort)),
        "orpo": ("Another preference branch, ORPO: stock axolotl.", orpo_config(effort)),
    }
    for name, (purpose, content) in configs.items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(run_dir / FOLDER / f"{name}.yml", f"# {purpose}\n{text}")


def _common(steps: int, learning_rate: float) -> dict[str, Any]:
    return {
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
        # An interrupted training goes on from here.
        "save_steps": 50,
        "save_total_limit": 1,
        "seed": SEED,
        **CPU_ONLY,
    }


def _data(name: str, kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"path": f"data/{name}.jsonl", "ds_type": "json", "split": "train", "type": kind, **fields}]


def sft_config(effort: Effort) -> dict[str, Any]:
    """SFT with the penalty, on `data/sft.jsonl` beside the `paft.yml`."""
    return {
        **_common(effort.sft_steps, 5e-4),
        "plugins": ["paft_plugin.PAFTPlugin"],
        "paft_l1_lambda": LAMBDA,
        "datasets": _data("sft", "chat_template"),
        "micro_batch_size": 64,
        "pad_to_sequence_len": False,  # axolotl pads to 64 otherwise, and these rows are 25 tokens long
        "warmup_steps": 20,
    }


def dpo_config(effort: Effort) -> dict[str, Any]:
    """DPO on `data/preference.jsonl` beside the `paft.yml`."""
    return {
        **_common(effort.preference_steps, 6e-4),
        "rl": "dpo",
        "rl_beta": 3.0,  # at 0.1 the pairs drag the answers' own likelihood down (LOG.md)
        "datasets": _data("preference", "chat_template.default", field_messages="question"),
        "micro_batch_size": 32,
        "warmup_steps": 20,
    }


def orpo_config(effort: Effort) -> dict[str, Any]:
    """ORPO on the same rows."""
    return {
        **_common(effort.preference_steps, 6e-4),
        "rl": "orpo",
        "orpo_alpha": 1.0,
        "remove_unused_columns": False,
        "datasets": _data("preference", "chat_template.argilla"),
        "micro_batch_size": 32,
        "warmup_steps": 20,
    }
