"""What each way of combining costs, from what runs leave behind: time, memory, trained tokens, room on the disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from paft_plugin.evaluation.arms import Arm
from paft_plugin.files import read_json_or_nothing
from paft_plugin.inspection.training_log import last_state
from paft_plugin.pipeline.arms import BRANCHES, MODELS, Setup
from paft_plugin.pipeline.estimate.disk import held
from paft_plugin.pipeline.plan import Plan
from paft_plugin.runner.markers import Marker, read_marker
from paft_plugin.runner.stages import Stage
from paft_plugin.study.design import Design, StudyArm

MIB = 1 << 20
TOKENS = ("tokens/total", "num_tokens")
"""What axolotl's trainers log of the tokens so far: of SFT, and of DPO (both answers of a pair); that of ORPO logs nothing."""


@dataclass(frozen=True)
class Seen:
    """What a training has seen."""

    steps: int | None = None
    """Of the optimizer; None where no checkpoint says."""
    tokens: int | None = None
    """None where its trainer does not say."""


Runs = Mapping[int, tuple[Setup, Plan]]
"""Seed → its run."""


def costs(design: Design, runs: Runs) -> list[dict[str, Any]]:
    """A row for each way and form: what its default takes, and what tuning took, each the mean over the seeds that have run.

    Sequential and joint trainings see what both branches see together: their steps and tokens say how equal that is.
    """
    trials: dict[tuple[str, str], list[StudyArm]] = {}
    for arm in design.arms:
        if arm.group == "way" and arm.way and arm.form:
            trials.setdefault((arm.way, arm.form), []).append(arm)
    rows = []
    for (way, form), arms in trials.items():
        found = [row for setup, plan in runs.values() if (row := _row(setup, plan, arms)) is not None]
        if found:
            rows.append({"Way": way, "Form": form, **_means(found)})
    return rows


def _row(setup: Setup, plan: Plan, trials: Sequence[StudyArm]) -> dict[str, float | None] | None:
    """What a way took in one run; None if its default is not there."""
    arms = {arm.name: arm for arm in setup.arms}
    default = arms.get(trials[0].name)
    first = [] if default is None else list(_made_by(default, plan))
    markers = _markers(setup.run_dir, first)
    if not first or len(markers) < len(first):
        return None
    every = {stage.name: stage for trial in trials if trial.name in arms for stage in _made_by(arms[trial.name], plan)}
    minutes = {name: marker.seconds / 60 for name, marker in _markers(setup.run_dir, every.values()).items()}
    trained = {name for name, stage in every.items() if stage.resumes and name in minutes}
    peaks = [marker.peak_memory for marker in markers.values() if marker.peak_memory is not None]
    names = [stage.name for stage in first]
    seen = [seen_by(setup.run_dir / stage.folder) for stage in first if stage.name in trained]
    return {
        "Trainings": len(seen),
        "Training (min)": sum(minutes[name] for name in names if name in trained),
        "Merging (min)": sum(minutes[name] for name in names if name not in trained),
        "Steps": _sum([one.steps for one in seen]),
        "Tokens": _sum([one.tokens for one in seen]),
        "Peak memory (MiB)": max(peaks) / MIB if peaks else None,
        "Disk (MiB)": sum(held(setup.run_dir / stage.folder) for stage in first) / MIB,
        "Trials": len(trials),
        "Trainings of all trials": len(trained),
        "Training of all trials (min)": sum(minutes[name] for name in trained),
    }


def expected(runs: Runs, waiting: Mapping[int, Collection[str]]) -> dict[int, tuple[float, int]]:
    """Seed → the seconds that its `waiting` stages took before or with other seeds, and how many of them nothing is known of."""
    taken: dict[str, list[float]] = {}
    for setup, plan in runs.values():
        for name, marker in _markers(setup.run_dir, plan.stages).items():
            taken.setdefault(name, []).append(marker.seconds)
    known = {seed: [fmean(taken[name]) for name in names if name in taken] for seed, names in waiting.items()}
    return {seed: (sum(known[seed]), len(names) - len(known[seed])) for seed, names in waiting.items()}


def _sum(counts: Sequence[int | None]) -> int | None:
    """None if one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _made_by(arm: Arm, plan: Plan) -> Iterator[Stage]:
    """The stages that make an arm: trainings, and what is done with their deltas."""
    stages = {stage.name: stage for stage in plan.stages}
    names = dict.fromkeys([*arm.branches, *([arm.stage] if arm.stage else [])])
    waiting, seen = [name for name in names if name in stages], set[str]()
    while waiting:
        stage = stages[waiting.pop()]
        if stage.name not in seen and stage.folder.parts[:1] in (BRANCHES.parts, MODELS.parts):
            seen.add(stage.name)
            waiting += [name for name in stage.needs if name in stages]
            yield stage


def _markers(run_dir: Path, stages: Any) -> dict[str, Marker]:
    found = {stage.name: read_marker(run_dir, stage.name) for stage in stages}
    return {name: marker for name, marker in found.items() if marker is not None}


def seen_by(folder: Path) -> Seen:
    """What the training in a folder has seen, by its checkpoints; too few tokens if it was resumed before it had logged any."""
    last = last_state(folder)
    if not last:
        return Seen()
    entries = read_json_or_nothing(last[0]).get("log_history") or []
    counts = [float(entry[key]) for entry in entries for key in TOKENS if isinstance(entry.get(key), (int, float))]
    # A training that was resumed counts from 0 again.
    tokens = sum(before for before, after in pairwise([*counts, 0.0]) if after < before)
    return Seen(int(last[0].parent.name.removeprefix("checkpoint-")), int(tokens) if counts else None)


def _means(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    values = {key: [value for row in rows if (value := row[key]) is not None] for key in rows[0]}
    return {key: fmean(known) if known else None for key, known in values.items()}
