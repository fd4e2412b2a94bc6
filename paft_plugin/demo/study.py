"""The demo's world as a study: its base model, rows for each seed, items that all seeds share, and a commented `study.yml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from paft_plugin.demo import data
from paft_plugin.demo.configs import FOLDER, FULL, SEED, TASKS, Effort, training_config
from paft_plugin.files import write_bytes, write_text
from paft_plugin.templates import render

MEASURES = ("skill", "style", "words", "untouched")
STUDY_FILE = "study.yml"


@dataclass(frozen=True)
class DemoStudy:
    """One size of the study."""

    effort: Effort
    seeds: tuple[int, ...]
    budget: int
    ways: tuple[str, ...]
    controls: tuple[str, ...]
    curves: dict[str, list[float]] = field(default_factory=dict)
    sft_rows: int = 12_800
    preference_rows: int = 4_800
    skill_items: int = data.MOST_ITEMS
    items: int = 500
    """Of every other measure, and of validation."""
    held_out: int = 200
    """Rows of each branch's data."""
    quick: bool = False


FULL_STUDY = DemoStudy(
    FULL,
    seeds=(1, 2, 3, 4, 5),
    budget=4,
    ways=(
        *("sequential", "sequential-reverse", "joint", "alpha", "disjoint"),
        *("task_arithmetic", "ties", "dare_ties", "ram"),
    ),
    controls=(
        *("rescale_l2", "rescale_l1", "prune", "prune_rescale", "drop", "early_stop", "l2", "kl", "factors"),
        *("preference_l1", "disjoint"),
    ),
    curves={
        "paft_l1_lambda": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3],
        "paft_target_sparsity": [0.7, 0.9, 0.97],
        "paft_max_loss_increase": [0.01, 0.03, 0.1],
        "density": [0.02, 0.05, 0.1, 0.2, 0.5, 0.9],
    },
)
QUICK_STUDY = DemoStudy(
    Effort(sft_steps=20, preference_steps=20),
    seeds=(1, 2),
    budget=2,
    ways=("sequential", "ties"),
    controls=("rescale_l2",),
    curves={"density": [0.1, 0.5]},
    sft_rows=1_600,
    preference_rows=800,
    skill_items=40,
    items=40,
    held_out=20,
    quick=True,
)


def write_study(study: DemoStudy, folder: Path) -> Path:
    """Write what the study is given into `folder`; returns its `study.yml`."""
    for shipped in resources.files("paft_plugin.demo").joinpath("base").iterdir():
        write_bytes(folder / "base" / shipped.name, shipped.read_bytes())
    for name in ("sft", "dpo"):
        write_text(folder / FOLDER / f"{name}.yml", training_config(name, study.effort))
    rows = folder / "data"
    for seed in study.seeds:
        data.write_training_rows(rows / str(seed), seed, {"sft": study.sft_rows}, study.preference_rows)
    counts = dict.fromkeys(MEASURES, study.items)
    data.write_items(rows, SEED, {"test": {**counts, "skill": study.skill_items}, "validation": counts})
    data.write_tasks(folder / TASKS, rows / "test", measures=MEASURES)
    data.write_tasks(folder / TASKS, rows / "validation", "validation", "_validation", MEASURES)
    file = folder / STUDY_FILE
    write_text(file, render("paft_plugin.demo", f"{STUDY_FILE}.jinja", measures=MEASURES, **vars(study)))
    return file
