"""How a training goes, from what the Trainer writes: the state of a running one (`Follower`), and its curve (`read_curve`).

A stage's log holds tqdm's bars and the metrics that transformers prints, on a line of their own, as a dictionary. `Starting
trainer...` is axolotl's own line. The first bar without a description after it is the Trainer's (`tqdm` in
transformers/trainer_callback.py), later ones of another length are evaluations. A curve takes more exact figures from the last
checkpoint's `trainer_state.json` and from `paft.json`, where they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paft_plugin.deltas.proof import Proof
from paft_plugin.files import PROOF_FILE, inside, read_json_or_nothing, seen_from
from paft_plugin.formats import threshold_key
from paft_plugin.reading import UnreadableError, open_regular, read_bytes

Point = dict[str, float]
"""What was logged at one step: the logger's name of a metric → value."""
STARTS = "[axolotl.train] Starting trainer..."
LATE = 5  # the end of a training is its last fifth: the last logged point alone is one batch's luck
SPARSITY = "paft/sparsity@"
"""What the names of sparsities begin with, before their threshold."""
_BAR = re.compile(r"^\s*\d+%\|[^|]*\| (\d+)/(\d+) \[[\d:]+<([\d:?]+),")
_METRIC = re.compile(r"'([^']+)': '?(-?(?:\d[\d.]*(?:e[+-]?\d+)?|inf)|nan)'?[,}]", re.IGNORECASE)
_BREAK = re.compile(rb"[\r\n]")


def printed_metrics(line: str) -> Point:
    """The numbers in a line of metrics that the Trainer printed; none if the line is none."""
    return {name: float(value) for name, value in _METRIC.findall(line)} if line.startswith("{'") else {}


@dataclass(frozen=True)
class Training:
    """What is known of a training."""

    begun: bool = False
    step: int = 0
    total: int = 0
    """Optimizer steps in all; 0: not known yet."""
    remaining: float | None = None
    """Seconds, as tqdm expects."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each that was logged; finite ones only, but for `loss`."""

    @property
    def loss(self) -> float | None:
        """The task's, without the penalty."""
        return self.metrics.get("loss")

    @property
    def strength(self) -> float | None:
        """λ."""
        return self.metrics.get("paft/lambda")

    @property
    def sparsity(self) -> tuple[str, float] | None:
        """The first threshold that is logged, as it is written there, and the share of entries at or under it."""
        logged = [each for each in self.metrics.items() if each[0].startswith(SPARSITY)]
        return next(((name.removeprefix(SPARSITY), value) for name, value in logged), None)


def advance(training: Training, line: str) -> Training:
    """What is known after one more `line` (or state of a bar) of the log."""
    if line.startswith("$ "):  # another attempt at the stage
        return Training()
    if line.rstrip().endswith(STARTS):
        return Training(begun=True)
    if not training.begun:
        return training
    if bar := _BAR.match(line):
        step, total = int(bar[1]), int(bar[2])
        if training.total in (0, total):
            return replace(training, step=step, total=total, remaining=_seconds(bar[3]))
    elif "epoch" in (found := printed_metrics(line)):
        known = {name: value for name, value in found.items() if name == "loss" or math.isfinite(value)}
        return replace(training, metrics={**training.metrics, **known})
    return training


class Follower:
    """Reads a growing log, each byte once."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._settled = Training()
        self._offset = 0
        self._rest = b""  # after the last line break: a line in the making, or the bar's latest state

    def update(self) -> Training:
        """What is known now; a log that cannot be read says nothing new."""
        try:
            with open_regular(self.log) as file:
                if file.seek(0, 2) < self._offset:  # it began anew
                    self._settled, self._offset, self._rest = Training(), 0, b""
                file.seek(self._offset)
                new = file.read()
        except OSError:
            new = b""
        self._offset += len(new)
        *lines, self._rest = _BREAK.split(self._rest + new)
        for line in lines:
            self._settled = advance(self._settled, line.decode("utf-8", errors="replace"))
        return advance(self._settled, self._rest.decode("utf-8", errors="replace"))


def _seconds(clock: str) -> float | None:
    """tqdm's `1:02:33`."""
    if "?" in clock:
        return None
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


@dataclass(frozen=True)
class Curve:
    """One training. The series are as long as `steps`; NaN stands where a step logged no such value."""

    branch: str
    sources: tuple[str, ...]
    """Files that it was read from, relative to the run's folder where they lie in there, the most exact first."""
    steps: tuple[int, ...]
    """Optimizer steps at which something was logged, ascending."""
    loss: tuple[float, ...]
    """The task's loss alone, as the Trainer averages it since the last logged step."""
    learning_rate: tuple[float, ...]
    lambda_: tuple[float, ...]
    l1_norm: tuple[float, ...]
    sparsity: dict[str, tuple[float, ...]]
    """Threshold, as `threshold_key` writes it → share of entries with |δ| ≤ threshold."""

    @property
    def start_loss(self) -> float | None:
        """The first loss that was logged; None without any. At step 1 it is the base model's, on one batch."""
        return next(iter(self._losses()), None)

    @property
    def final_loss(self) -> float | None:
        """The mean over the last fifth of what was logged, at least one point; None without any."""
        losses = self._losses()
        late = losses[-max(1, len(losses) // LATE) :]
        return sum(late) / len(late) if late else None

    @property
    def loss_steps(self) -> tuple[int, ...]:
        """Where a loss was logged."""
        return tuple(step for step, loss in zip(self.steps, self.loss, strict=True) if math.isfinite(loss))

    @property
    def peak_learning_rate(self) -> float | None:
        """The highest that was logged."""
        return max((rate for rate in self.learning_rate if math.isfinite(rate)), default=None)

    def _losses(self) -> list[float]:
        return [loss for loss in self.loss if math.isfinite(loss)]


def read_curve(run_dir: Path, branch: str, folder: Path | None = None) -> Curve | None:
    """What is known of the training of `run_dir/branches/BRANCH`, or of one in another folder, with its log in the run's.

    A file that is missing or cannot be read adds nothing: a curve is something to look at, not something to fail for.
    """
    folder = folder or inside(run_dir, Path("branches") / branch)
    points: dict[int, Point] = {}
    sources: list[str] = []
    # The least exact first, so that the others overwrite it.
    log, proof = inside(run_dir, Path("logs") / f"{branch}.log"), folder / PROOF_FILE
    states = {state: _points(read_json_or_nothing(state).get("log_history")) for state in last_state(folder)}
    for source, found in {log: _from_log(log), proof: _from_proof(proof), **states}.items():
        if found:
            sources.insert(0, seen_from(run_dir, source))
        for step, point in found.items():
            points.setdefault(step, {}).update(point)
    return _curve(branch, tuple(sources), points) if points else None


def _curve(branch: str, sources: tuple[str, ...], points: Mapping[int, Point]) -> Curve:
    steps = tuple(sorted(points))

    def series(name: str) -> tuple[float, ...]:
        return tuple(points[step].get(name, math.nan) for step in steps)

    sparsities = sorted({name for point in points.values() for name in point if name.startswith(SPARSITY)})
    return Curve(
        branch=branch,
        sources=sources,
        steps=steps,
        loss=series("loss"),
        learning_rate=series("learning_rate"),
        lambda_=series("paft/lambda"),
        l1_norm=series("paft/l1_norm"),
        sparsity={name.removeprefix(SPARSITY): series(name) for name in sparsities},
    )


def _from_log(file: Path) -> dict[int, Point]:
    """The metrics of a stage's log, at the step that the bar before them says; without bars they are counted."""
    try:
        text = read_bytes(file).decode("utf-8", errors="replace")
    except UnreadableError:
        return {}
    points: dict[int, Point] = {}
    step = printed = 0
    for line in re.split(r"[\r\n]", text):
        if bar := _BAR.match(line):
            step = int(bar[1])
        elif "loss" in (metrics := printed_metrics(line)):
            printed += 1
            points.setdefault(step or printed, {}).update(_numbers(metrics))
    return points


def _from_proof(file: Path) -> dict[int, Point]:
    """The history of `paft.json`, under the names that the Trainer logs."""
    proof = Proof.read_or_nothing(file)
    entries = []
    for point in proof.history if proof else ():
        shares = {f"{SPARSITY}{key}": share for key, share in point.sparsity.items()}
        entries.append({"step": point.step, "paft/lambda": point.strength, "paft/l1_norm": point.l1_norm, **shares})
    return _points(entries)


def _points(history: Any) -> dict[int, Point]:
    """Step → what the entries of a list say of it; what is no entry with a step is left out."""
    points: dict[int, Point] = {}
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            points.setdefault(entry["step"], {}).update(_numbers(entry))
    return points


def _numbers(entry: Mapping[str, Any]) -> Point:
    """The entries that are numbers, or text that reads as one; thresholds as every file of this project names them."""
    point = {}
    for name, value in entry.items():
        try:
            number = float(value)
            if name.startswith(SPARSITY):
                name = SPARSITY + threshold_key(float(name.removeprefix(SPARSITY)))
        except (TypeError, ValueError):
            continue
        point[name] = number
    return point


def last_state(folder: Path) -> list[Path]:
    """The `trainer_state.json` of the last checkpoint, if there is one."""
    states = {
        file.parent.name.removeprefix("checkpoint-"): file for file in folder.glob("checkpoint-*/trainer_state.json")
    }
    return [states[number] for number in sorted(filter(str.isdigit, states), key=int)[-1:]]
