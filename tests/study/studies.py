"""Studies with known effects, made on the spot: what every arm scores is drawn around a rate that the test gives it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from paft_plugin.evaluation.arms import RUN_FILE, Arm, RunFile
from paft_plugin.evaluation.items import ITEMS_FILE, ItemScore, write_items
from paft_plugin.evaluation.results import VALIDATION, ArmScore, Measure, ScoresFile
from paft_plugin.files import fingerprint
from paft_plugin.report.collect import write_results
from paft_plugin.study.design import DESIGN_FILE, Contrast, Design, Match, StudyArm
from paft_plugin.study.scores import ArmFigures, MeasureItems, StudyFigures, numbers, write_scores

MEASURES = {"skill": "acc", "preference": "acc", "retained": "nll"}
COUNTS = {"skill": 400, "preference": 200, "retained": 120}
SEED_SPREAD = 0.01
"""Standard deviation between seeds of what an arm scores."""
Levels = Mapping[str, tuple[float, float, float]]
"""Arm → its true skill, preference and nats on what is retained."""

# Sequential training loses skill; of the fusions ties of the penalised branch are best; dropping by chance is as good as dense.
LEVELS: dict[str, tuple[float, float, float]] = {
    "base": (0.20, 0.50, 1.00),
    "sft": (0.80, 0.50, 1.10),
    "sft-l1": (0.78, 0.50, 1.02),
    "dpo": (0.20, 0.90, 1.05),
    "sequential": (0.60, 0.88, 1.15),
    "joint": (0.72, 0.80, 1.10),
    "ties": (0.60, 0.75, 1.10),
    "ties-2": (0.55, 0.85, 1.10),
    "ties-l1": (0.74, 0.80, 1.03),
    "ties-l1-2": (0.76, 0.86, 1.03),
    "ta": (0.66, 0.80, 1.08),
    "ta-l1": (0.66, 0.80, 1.08),
    "stop-10": (0.60, 0.50, 1.03),
    "stop-20": (0.77, 0.50, 1.05),
    "dropped": (0.79, 0.50, 1.10),
    "stop-10-ties": (0.50, 0.80, 1.05),
    "stop-20-ties": (0.64, 0.80, 1.05),
    "dropped-ties": (0.60, 0.75, 1.10),
    "lambda-1": (0.80, 0.50, 1.08),
    "lambda-9": (0.60, 0.50, 1.00),
}


def arms() -> tuple[StudyArm, ...]:
    """Those of `LEVELS`."""

    def way(name: str, way: str, form: str, trial: int = 1) -> StudyArm:
        return StudyArm(
            name=name, group="way", way=way, form=form, trial=trial, of="sft-l1" if form == "l1" else "sft", settings={}
        )

    stop = Match(measure="skill", to="sft-l1")
    return (
        StudyArm(name="base", group="base"),
        StudyArm(name="sft", group="branch", form="dense", of="sft"),
        StudyArm(name="sft-l1", group="branch", form="l1", of="sft-l1"),
        StudyArm(name="dpo", group="branch"),
        way("sequential", "sequential", "dense"),
        way("joint", "joint", "dense"),
        way("ties", "ties", "dense"),
        way("ties-2", "ties", "dense", 2),
        way("ties-l1", "ties", "l1"),
        way("ties-l1-2", "ties", "l1", 2),
        way("ta", "task_arithmetic", "dense"),
        way("ta-l1", "task_arithmetic", "l1"),
        StudyArm(name="stop-10", group="control", control="early_stop", match=stop, of="stop-10"),
        StudyArm(name="stop-20", group="control", control="early_stop", match=stop, of="stop-20"),
        StudyArm(name="dropped", group="control", control="drop", of="dropped"),
        StudyArm(name="stop-10-ties", group="control", control="early_stop", way="ties", of="stop-10"),
        StudyArm(name="stop-20-ties", group="control", control="early_stop", way="ties", of="stop-20"),
        StudyArm(name="dropped-ties", group="control", control="drop", way="ties", of="dropped"),
        StudyArm(name="sft", group="curve", curve="paft_l1_lambda", x=0.0, form="dense"),
        StudyArm(name="lambda-1", group="curve", curve="paft_l1_lambda", x=1e-5),
        StudyArm(name="sft-l1", group="curve", curve="paft_l1_lambda", x=1e-4),
        StudyArm(name="lambda-9", group="curve", curve="paft_l1_lambda", x=9e-4),
        StudyArm(name="ties", group="curve", curve="paft_l1_lambda", x=0.0, way="ties"),
        StudyArm(name="ties-l1", group="curve", curve="paft_l1_lambda", x=1e-4, way="ties"),
        StudyArm(name="ta-l1", group="curve", curve="paft_l1_lambda", x=1e-4, way="task_arithmetic"),
    )


CONTRASTS = (
    Contrast(name="parallel", question="Better than in a row?", one="best:ties/l1", other="sequential", measure="primary"),
    Contrast(name="penalty", question="Does the penalty help ties?", one="ties-l1", other="ties", measure="skill"),
    Contrast(name="penalty-ta", question="And task arithmetic?", one="ta-l1", other="ta", measure="skill", margin=0.04),
    Contrast(name="stopped", one="ties-l1", other="control:early_stop/ties", measure="skill"),
)  # fmt: skip


def design(seeds: Sequence[int] = (1, 2, 3), **changes: object) -> Design:
    """The study of `LEVELS`."""
    content: dict[str, object] = {
        "seeds": tuple(seeds), "skill": "skill", "preference": "preference", "retained": ("retained",),
        "primary": ("skill", "preference"), "arms": arms(), "contrasts": CONTRASTS,
    }  # fmt: skip
    return Design.model_validate({**content, **changes})


def measures() -> tuple[Measure, ...]:
    """Of test and of validation items."""
    return tuple(
        Measure(
            name + end, "held_out/retained" if metric == "nll" else f"my_{name}", metric, "none", metric != "nll", 0.02
        )
        for name, metric in MEASURES.items()
        for end in ("", VALIDATION)
    )


def drawn_items(
    seed: int, levels: Levels = LEVELS, counts: Mapping[str, int] = COUNTS, spread: float = SEED_SPREAD
) -> dict[str, MeasureItems]:
    """What a seed's arms come to on every item: the items' difficulty is the same in all seeds, and so are their names."""
    found = {}
    for place, (name, metric) in enumerate(MEASURES.items()):
        for end in ("", VALIDATION):
            count = counts[name]
            hardness = _generator(name, end).random(count)
            by_arm = {}
            for arm, level in levels.items():
                own = _generator(name, end, arm, seed)
                true = level[place] + spread * _generator(name, arm, seed).standard_normal() * (arm != "base")
                noise = 0.15 * own.standard_normal(count) * (arm != "base")
                by_arm[arm] = (
                    true + 0.3 * (hardness - 0.5) + 0.1 * noise
                    if metric == "nll"
                    else ((hardness + noise) % 1.0 < true).astype(np.float64)
                )
            names = item_names(count, name + end)
            found[name + end] = MeasureItems(fingerprint(names), by_arm, numbers(names))
    return found


def _generator(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


def item_names(count: int, measure: str) -> list[str]:
    """In order."""
    return [f"{measure}-{place:05d}" for place in range(count)]


def write_small(folder: Path, study: Design | None = None, levels: Levels = LEVELS, **options: object) -> Path:
    """The small files of a study, as `collect` writes them."""
    study = study or design()
    study.write(folder / DESIGN_FILE)
    figures = {
        arm: ArmFigures(
            sparsity={"1e-05": 0.9 if "l1" in arm or "drop" in arm else 0.1} if arm != "base" else {},
            l1=10.0, l2=1.0 + 0.1 * len(arm),
        )
        for arm in levels
    }  # fmt: skip
    cost = ({"way": "ties", "seconds": 12.5}, {"way": "joint", "seconds": 99.0})
    items = {seed: drawn_items(seed, levels, **options) for seed in study.seeds}  # type: ignore[arg-type]
    write_scores(folder, items, StudyFigures(measures=measures(), seeds=dict.fromkeys(items, figures), cost=cost))
    return folder


def write_runs(folder: Path, study: Design | None = None, levels: Levels = LEVELS, **options: object) -> Path:
    """The same study as the run folders of its seeds, with the files that a pipeline leaves."""
    study = study or design()
    study.write(folder / DESIGN_FILE)
    run_arms = tuple(_run_arm(name) for name in levels)
    for seed in study.seeds:
        run, items = study.run_dir(folder, seed), drawn_items(seed, levels, **options)  # type: ignore[arg-type]
        RunFile(base="base", skills=("skill",), preferences=("preference",), arms=run_arms).write(run / RUN_FILE)
        for arm in levels:
            means = {name: float(each.arms[arm].mean()) for name, each in items.items()}
            counts = {name: len(each) for name, each in items.items()}
            ScoresFile(measures=measures(), scores={arm: ArmScore(scores=means, n=counts)}).write(
                run / "scores" / arm / "scores.json"
            )
            write_items(
                run / "scores" / arm / ITEMS_FILE,
                (
                    ItemScore(measure=name, item=item, value=float(value))
                    for name, each in items.items()
                    for item, value in zip(item_names(len(each), name), each.arms[arm], strict=True)
                ),
            )
        write_results(run)
    return folder


def _run_arm(name: str) -> Arm:
    if name in ("base", "sequential", "joint"):
        return Arm(name=name, kind=name)  # type: ignore[arg-type]
    if name == "dpo":
        return Arm(name=name, kind="branch", role="preference", branches=(name,))
    is_fused = "ti" in name or "ta" in name
    return Arm(name=name, kind="fused" if is_fused else "branch", role=None if is_fused else "sft", branches=("sft",))
