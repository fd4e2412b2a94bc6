"""The demo as stages of real commands: train the branches, write recipes, run them, score every arm."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paft_plugin.demo.configs import FULL, QUICK, SEED, Effort
from paft_plugin.demo.measures import MEASURES_FILE, TASKS
from paft_plugin.pipeline.stages import Stage

BRANCHES = {
    "sft": "SFT branch, no penalty",
    "sft-l1": "SFT branch with the L1 penalty",
    "dpo": "preference branch, DPO",
    "orpo": "preference branch, ORPO",
}
SPARSE, DENSE = "paft", "parallel"  # how arms that fuse sft-l1 or sft with dpo begin


@dataclass(frozen=True)
class Demo:
    """What one size of the demo runs."""

    effort: Effort
    branches: tuple[str, ...]
    fused: dict[str, tuple[str, ...]]
    """`SPARSE` or `DENSE` → merge methods."""
    sequential: bool
    items: int
    """Scored items a measure."""

    @property
    def fused_arms(self) -> list[str]:
        return [arm_name(kind, method) for kind, methods in self.fused.items() for method in methods]

    @property
    def arms(self) -> list[str]:
        """Every arm, in the order of the table."""
        return ["base", *self.branches, *(["sequential"] if self.sequential else []), *self.fused_arms]


METHODS = ("ties", "dare_ties", "linear")
FULL_DEMO = Demo(FULL, ("sft", "sft-l1", "dpo", "orpo"), {DENSE: METHODS, SPARSE: METHODS}, sequential=True, items=200)
QUICK_DEMO = Demo(QUICK, ("sft", "sft-l1", "dpo"), {DENSE: ("ties",), SPARSE: ("ties",)}, sequential=False, items=100)

# Chosen beside the settings of the branches: see LOG.md.
RECIPE_OPTIONS: dict[str, tuple[str, ...]] = {
    "ties": ("--density", "0.5"),
    "dare_ties": (),
    "linear": (),
}


def arm_name(kind: str, method: str) -> str:
    """`paft-ties`, `parallel-dare_ties` …"""
    return f"{kind}-{method}"


def model_folder(arm: str) -> Path:
    """Where an arm's model or adapter lies, relative to the run directory."""
    if arm == "base":
        return Path("base")
    if arm in BRANCHES:
        return Path("branches") / arm
    if arm == "sequential":
        return Path("models") / "sequential" / "merged"
    return Path("models") / arm


def make_stages(demo: Demo, run_dir: Path) -> list[Stage]:
    """All stages of a demo in `run_dir`, which must be absolute."""
    return [
        *(_train(run_dir, branch, BRANCHES[branch]) for branch in demo.branches),
        *(_sequential(run_dir) if demo.sequential else ()),
        *(
            stage
            for kind, methods in demo.fused.items()
            for method in methods
            for stage in _fuse(run_dir, kind, method)
        ),
        *_scores(run_dir, demo),
    ]


def _axolotl(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "axolotl.cli.main", *arguments)


def _train(run_dir: Path, name: str, title: str, needs: tuple[str, ...] = ()) -> Stage:
    config = run_dir / "configs" / f"{name}.yml"
    with_plugin = name == "sft-l1"
    # The plugin seeds the adapter itself; stock axolotl has to be seeded from outside to be reproducible.
    command = (
        _axolotl("train", str(config), "--launcher", "python")
        if with_plugin
        else (sys.executable, "-m", "paft_plugin.pipeline.train", str(config))
    )
    data = "sft.jsonl" if name.startswith("sft") else "preference.jsonl"
    base = () if needs else (run_dir / "base",)
    return Stage(
        name=name,
        title=f"train {title}",
        command=command,
        folder=Path("branches") / name,
        needs=needs,
        inputs=(config, run_dir / "data" / data, *base),
    )


def _merge_adapter(run_dir: Path, name: str, needs: tuple[str, ...]) -> Stage:
    """Fold a branch's adapter into the model that it was trained on."""
    command = _axolotl(
        "merge-lora",
        str(run_dir / "configs" / f"{name}.yml"),
        f"--lora-model-dir={run_dir / 'branches' / name}",
        f"--output-dir={run_dir / 'models' / name}",
    )
    return Stage(
        name=f"merge-{name}",
        title=f"merge the adapter of {name}",
        command=command,
        folder=Path("models") / name,
        needs=needs,
    )


def _sequential(run_dir: Path) -> Iterator[Stage]:
    yield _merge_adapter(run_dir, "sft", ("sft",))
    yield _train(run_dir, "sequential", "DPO on top of SFT", ("merge-sft",))
    yield _merge_adapter(run_dir, "sequential", ("merge-sft", "sequential"))


def _fuse(run_dir: Path, kind: str, method: str) -> Iterator[Stage]:
    arm = arm_name(kind, method)
    sft = "sft-l1" if kind == SPARSE else "sft"
    recipe = run_dir / "recipes" / arm / f"{arm}.yml"
    yield Stage(
        name=f"recipe-{arm}",
        title=f"write the recipe of {arm}",
        command=_axolotl(
            "paft", "recipe",
            "--base", str(run_dir / "base"),
            "--sft", str(run_dir / "branches" / sft),
            "--preference", str(run_dir / "branches" / "dpo"),
            "--method", method, *RECIPE_OPTIONS[method],
            "--seed", str(SEED),
            "--output", str(recipe),
            "--merged", str(run_dir / model_folder(arm)),
        ),
        folder=recipe.parent,
        needs=(sft, "dpo"),
    )  # fmt: skip
    yield Stage(
        name=f"fuse-{arm}",
        title=f"fuse {arm}",
        command=(sys.executable, "-m", "paft_plugin.fusion.run", str(recipe)),
        folder=model_folder(arm),
        needs=(f"recipe-{arm}",),
    )


def _scores(run_dir: Path, demo: Demo) -> Iterator[Stage]:
    """One scoring process a group of arms, each as soon as its arms are there."""
    yield _score(run_dir, "branches", ["base", *demo.branches], demo.branches)
    if demo.sequential:
        yield _score(run_dir, "sequential", ["sequential"], ("merge-sequential",))
    yield _score(run_dir, "fused", demo.fused_arms, tuple(f"fuse-{arm}" for arm in demo.fused_arms))


def _score(run_dir: Path, name: str, arms: Sequence[str], needs: Sequence[str]) -> Stage:
    measures = run_dir / MEASURES_FILE
    return Stage(
        name=f"score-{name}",
        title=f"score {', '.join(arms)}",
        command=(
            sys.executable, "-m", "paft_plugin.evaluation.score",
            "--measures", str(measures),
            "--output", str(run_dir / "scores" / name / "scores.json"),
            *(f"{arm}={run_dir / model_folder(arm)}" for arm in arms),
        ),
        folder=Path("scores") / name,
        needs=tuple(needs),
        inputs=(measures, run_dir / TASKS, run_dir / "data" / "test", *((run_dir / "base",) if "base" in arms else ())),
    )  # fmt: skip
