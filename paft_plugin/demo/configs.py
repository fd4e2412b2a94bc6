"""What the demo is given: its `paft.yml` and the axolotl configs of its branches, from templates, in two sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from paft_plugin.demo.data import SFT_DATA
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
Training = Literal["sft", "mix", "dpo", "orpo"]


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
    branches: tuple[str, ...] = ("sft", "preference")
    """A skill and a preference, or two skills and a preference."""


FULL = Effort(sft_steps=200, preference_steps=120)
QUICK = Effort(sft_steps=120, preference_steps=80)
TIES, SUM = "ties: {density: 0.5}", "task_arithmetic:"
FULL_DEMO = Demo(
    FULL,
    ("base", "sft", "sft-l1", "dpo", "sequential", "parallel-*", "paft-*"),
    (TIES, "dare_ties:", SUM),
    items=200,
)
QUICK_DEMO = Demo(QUICK, ("base", "sft", "sft-l1", "dpo", "parallel-ties", "paft-ties"), (TIES,), items=100)
FULL_OF_THREE = Demo(
    FULL,
    ("base", "sums", "sums-l1", "mix", "mix-l1", "dpo", "parallel-*", "paft-*", "without-*-task_arithmetic"),
    (TIES, SUM),
    items=200,
    branches=("sums", "mix", "preference"),
)
QUICK_OF_THREE = Demo(
    QUICK,
    ("base", "sums-l1", "mix-l1", "dpo", "paft-ties", "without-*"),
    (TIES,),
    items=100,
    branches=("sums", "mix", "preference"),
)
FULL_DEMOS, QUICK_DEMOS = {2: FULL_DEMO, 3: FULL_OF_THREE}, {2: QUICK_DEMO, 3: QUICK_OF_THREE}
"""By number of branches."""


def write_configs(run_dir: Path, effort: Effort) -> None:
    """Write `axolotl/*.yml` into the run directory, one for each branch."""
    for name in get_args(Training):
        write_text(run_dir / FOLDER / f"{name}.yml", training_config(name, effort))


def training_config(name: Training, effort: Effort) -> str:
    """The axolotl config of a branch, on the rows in `data/` beside the `paft.yml`; the run names base and output folder."""
    if name in SFT_DATA:
        return _render("sft.yml", steps=effort.sft_steps, cpu_only=CPU_ONLY, data=name)
    return _render(f"{name}.yml", steps=effort.preference_steps, cpu_only=CPU_ONLY)


def paft_yml(demo: Demo) -> str:
    """The text of the demo's `paft.yml`."""
    arms = ", ".join(f"'{arm}'" if "*" in arm else arm for arm in demo.arms)
    tasks = {"tasks": TASKS.as_posix(), "validation_tasks": VALIDATION_TASKS.as_posix()}
    return _render("paft.yml", demo=demo, arms=arms, **tasks)


def _render(name: str, **values: object) -> str:
    return render("paft_plugin.demo", f"{name}.jinja", seed=SEED, strength=f"{LAMBDA:g}", **values)
