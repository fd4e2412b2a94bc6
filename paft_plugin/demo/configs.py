"""What the demo is given: its `paft.yml` and the axolotl configs of its branches, from templates, in two sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from paft_plugin.files import write_text
from paft_plugin.templates import render

SEED = 42
LAMBDA = 1e-4
CPU_ONLY = dict.fromkeys(
    ("bf16", "fp16", "tf32", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False
)
"""Keys of axolotl that a CPU needs: it has neither these precisions nor these kernels, and axolotl turns them on by itself."""
FOLDER = Path("axolotl")
"""Where the demo's axolotl configs lie; what axolotl is given in the end is in the run's `configs/`."""
TASKS, VALIDATION_TASKS = Path("evaluation") / "tasks", Path("evaluation") / "validation_tasks"
Training = Literal["sft", "dpo", "orpo"]


@dataclass(frozen=True)
class Effort:
    """How long the branches train, in optimizer steps."""

    sft_steps: int
    preference_steps: int


@dataclass(frozen=True)
class Demo:
    """One size of the demo."""

    effort: Effort
    arms: tuple[str, ...]
    methods: tuple[str, ...]
    items: int
    """Scored items a measure."""


FULL = Effort(sft_steps=200, preference_steps=120)
QUICK = Effort(sft_steps=120, preference_steps=80)
FULL_DEMO = Demo(
    FULL,
    ("base", "sft", "sft-l1", "dpo", "orpo", "sequential", "parallel-*", "paft-*"),
    ("ties: {density: 0.5}", "dare_ties:", "linear:"),
    items=200,
)
QUICK_DEMO = Demo(
    QUICK, ("base", "sft", "sft-l1", "dpo", "parallel-ties", "paft-ties"), ("ties: {density: 0.5}",), items=100
)


def write_configs(run_dir: Path, effort: Effort) -> None:
    """Write `axolotl/*.yml` into the run directory, one for each branch."""
    for name in get_args(Training):
        write_text(run_dir / FOLDER / f"{name}.yml", training_config(name, effort))


def training_config(name: Training, effort: Effort) -> str:
    """The axolotl config of a branch, on the rows in `data/` beside the `paft.yml`; the run names base and output folder."""
    steps = effort.sft_steps if name == "sft" else effort.preference_steps
    return _render(f"{name}.yml", steps=steps, cpu_only=CPU_ONLY)


def paft_yml(demo: Demo) -> str:
    """The text of the demo's `paft.yml`."""
    arms = ", ".join(f"'{arm}'" if "*" in arm else arm for arm in demo.arms)
    tasks = {"tasks": TASKS.as_posix(), "validation_tasks": VALIDATION_TASKS.as_posix()}
    return _render("paft.yml", demo=demo, arms=arms, **tasks)


def _render(name: str, **values: object) -> str:
    return render("paft_plugin.demo", f"{name}.jinja", seed=SEED, strength=f"{LAMBDA:g}", **values)
