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


TASKS, VALIDATION_TASKS = Path("evaluation") / "tasks", Path("evaluation") / "validation_tasks"


@dataclass(frozen=True)
class Demo:
    """One size of the demo."""

    effort: Effort
    arms: tuple[str, ...]
    methods: tuple[str, ...]
    items: int
    """Scored items a measure."""


FULL_DEMO = Demo(
    FULL,
    ("base", "sft", "sft-l1", "dpo", "orpo", "sequential", "parallel-*", "paft-*"),
    ("ties: {density: 0.5}", "dare_ties:", "linear:"),
    items=200,
)
QUICK_DEMO = Demo(
    QUICK, ("base", "sft", "sft-l1", "dpo", "parallel-ties", "paft-ties"), ("ties: {density: 0.5}",), items=100
)


def paft_yml(demo: Demo) -> str:
    """The text of the demo's `paft.yml`."""
    methods = "\n".join(f"    {method}" for method in demo.methods)
    return f"""\
# What `axolotl paft demo` runs, which writes this file anew each time: copy it to change it. By hand:
#   axolotl paft run paft.yml            (--dry-run shows what it would do)
#   axolotl paft search paft.yml         (better merge settings, chosen by validation items)
description: |
  PAFT on a small base model: an SFT branch with an L1 penalty on its delta and a preference branch, trained in parallel and
  fused (arXiv 2406.17923).

  - **Skill**: additions answered right; what the SFT branch teaches. The base model evades most of them.
  - **Preference**: how often the polite answer is likelier than a plain or rude one, on held-out pairs.
  - **Style**: how many answers to prompts of all kinds are polite; what the preference branch teaches.
  - **Retained**: copying, reversing, sorting and saying twice, which the base model can do and should still be able to.

  λ = {LAMBDA:g}. All prompts scored here were held out of every training, that of the base model included.

base: base
sft: axolotl/sft.yml                  # with the plugin's keys; its twin without them makes the arm `sft`
preference: axolotl/dpo.yml
compare:
  orpo: axolotl/orpo.yml              # trained and scored, not fused
output_dir: .

arms: [{", ".join(f"'{arm}'" if "*" in arm else arm for arm in demo.arms)}]
fusion:
  methods:
{methods}
  seed: {SEED}

evaluation:
  tasks: {TASKS.as_posix()}             # lm-eval's YAML files
  measures:
    paft_skill: {{name: skill}}
    paft_preference: {{name: preference}}
    paft_style: {{name: style}}
    paft_retained: {{name: retained}}
  skill: skill                        # the alignment tax is paid in it
  preference: preference
  batch_size: 64
  device: cpu
  dtype: float32

inspection:
  thresholds: [1.0e-5, 1.0e-3]

executor:
  kind: local
  workers: 2                          # stages at once
  threads: 1                          # a model this small is slower with two
  devices: []                         # no GPU, even if there is one: the same numbers everywhere

search:
  # Validation items are searched on; the tasks of the test items judge what was found.
  tasks: {VALIDATION_TASKS.as_posix()}
  test_tasks: {TASKS.as_posix()}
  objectives:
    paft_skill: {{name: skill}}
    # The preference as it shows in answers. paft_preference, the choice between two given answers, is 1.00 in every fused arm.
    paft_style: {{name: style}}
    paft_retained: {{name: retained}}
  trials: 40
  seed: {SEED}
"""
