"""How far a training is, from the log that it writes: tqdm's bar and the metrics that transformers prints.

`Starting trainer...` is axolotl's own line. The first bar without a description after it is the Trainer's (`tqdm` in
transformers/trainer_callback.py), later ones of another length are evaluations. Metrics stand on a line of their own, as a
dictionary with an `epoch`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paft_plugin.files import PROOF_FILE, read_json_or_nothing
from paft_plugin.formats import threshold_key

STARTS = "[axolotl.train] Starting trainer..."
_BAR = re.compile(r"^\s*\d+%\|[^|]*\| (\d+)/(\d+) \[[\d:]+<([\d:?]+),")
_METRIC = re.compile(r"'([^']+)': '?(-?(?:\d[\d.]*(?:e[+-]?\d+)?|inf)|nan)'?[,}]", re.IGNORECASE)
_SPARSITY = "paft/sparsity@"
_BREAK = re.compile(rb"[\r\n]")


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
        found = (
            (name.removeprefix(_SPARSITY), value) for name, value in self.metrics.items() if name.startswith(_SPARSITY)
        )
        return next(found, None)


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
    elif line.startswith("{'") and "'epoch': " in line:
        found = {name: float(value) for name, value in _METRIC.findall(line)}
        known = {name: value for name, value in found.items() if name == "loss" or math.isfinite(value)}
        return replace(training, metrics={**training.metrics, **known})
    return training


def read_training(log: str) -> Training:
    """What a whole log says."""
    training = Training()
    for line in re.split(r"[\r\n]", log):
        training = advance(training, line)
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
            with self.log.open("rb") as file:
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


LATE = 5  # the end of a training is its last fifth: the last logged point alone is one batch's luck
_SPARSITY_of_curves = "paft/sparsity@"
_PRINTED = re.compile(
    r"(?P<done>\d+)/\d+ \[\d+:\d+"  # a progress bar: the step that the next printed figures belong to
    r"|(?P<figures>\{'[^{}\n]*\})"
)

Point = dict[str, float]
"""What was logged at one step: the logger's name of a metric → value."""


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


def read_curve(run_dir: Path, branch: str) -> Curve | None:
    """What is known of the training of `run_dir/branches/BRANCH`; None if nothing is.

    A file that is missing or cannot be read adds nothing: a curve is something to look at, not something to fail for.
    """
    return read_curve_of(run_dir / "branches" / branch, run_dir, branch)


def read_curve_of(folder: Path, run_dir: Path, branch: str) -> Curve | None:
    """`read_curve` of a branch that lies in any `folder`, with its log in the run's."""
    points: dict[int, Point] = {}
    sources: list[str] = []
    # The least exact first, so that the others overwrite it.
    for source, found in (
        (run_dir / "logs" / f"{branch}.log", _from_log),
        (folder / PROOF_FILE, _from_proof),
        (_last_state(folder), _from_state),
    ):
        read = found(source) if source is not None else {}
        if source is not None and read:
            sources.insert(0, shown(source, run_dir))
        for step, point in read.items():
            points.setdefault(step, {}).update(point)
    return _curve(branch, tuple(sources), points) if points else None


def shown(file: Path, run_dir: Path) -> str:
    """A file's path as a reader of the run's folder wants it."""
    return file.relative_to(run_dir).as_posix() if file.is_relative_to(run_dir) else str(file)


def _curve(branch: str, sources: tuple[str, ...], points: Mapping[int, Point]) -> Curve:
    steps = tuple(sorted(points))

    def series(name: str) -> tuple[float, ...]:
        return tuple(points[step].get(name, math.nan) for step in steps)

    sparsities = sorted({name for point in points.values() for name in point if name.startswith(_SPARSITY_of_curves)})
    return Curve(
        branch=branch,
        sources=sources,
        steps=steps,
        loss=series("loss"),
        learning_rate=series("learning_rate"),
        lambda_=series("paft/lambda"),
        l1_norm=series("paft/l1_norm"),
        sparsity={name.removeprefix(_SPARSITY_of_curves): series(name) for name in sparsities},
    )


def _from_state(file: Path) -> dict[int, Point]:
    """`log_history` of a checkpoint's `trainer_state.json`."""
    history = read_json_or_nothing(file).get("log_history")
    points: dict[int, Point] = {}
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            points.setdefault(entry["step"], {}).update(_numbers(entry))
    return points


def _from_proof(file: Path) -> dict[int, Point]:
    """The history of `paft.json`."""
    history = read_json_or_nothing(file).get("history")
    points: dict[int, Point] = {}
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            shares = entry.get("sparsity")
            named = (
                {f"{_SPARSITY_of_curves}{key}": share for key, share in shares.items()}
                if isinstance(shares, dict)
                else {}
            )
            known = {"paft/lambda": entry.get("lambda"), "paft/l1_norm": entry.get("l1_norm"), **named}
            points[entry["step"]] = _numbers(known)
    return points


def _from_log(file: Path) -> dict[int, Point]:
    """The figures that the Trainer printed between its progress bars, in a stage's log."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    points: dict[int, Point] = {}
    for step, figures in _printed(text):
        points.setdefault(step, {}).update(_numbers(figures))
    return points


def _printed(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, figures) in the order in which they were printed; without progress bars, steps are counted by what was printed."""
    done = printed = 0
    for found in _PRINTED.finditer(text):
        if found["done"]:
            done = int(found["done"])
            continue
        try:
            figures = ast.literal_eval(found["figures"])
        except (ValueError, SyntaxError):
            continue
        if isinstance(figures, dict) and "loss" in figures:
            printed += 1
            yield done or printed, figures


def _numbers(entry: Mapping[str, Any]) -> Point:
    """The entries that are numbers, or text that reads as one; thresholds as every file of this project names them."""
    point = {}
    for name, value in entry.items():
        try:
            number = float(value)
            if name.startswith(_SPARSITY_of_curves):
                name = _SPARSITY_of_curves + threshold_key(float(name.removeprefix(_SPARSITY_of_curves)))
        except (TypeError, ValueError):
            continue
        point[name] = number
    return point


def _last_state(folder: Path) -> Path | None:
    """The `trainer_state.json` of the last checkpoint."""
    states = [file for file in folder.glob("checkpoint-*/trainer_state.json") if _step_of(file) is not None]
    return max(states, key=lambda file: _step_of(file) or 0, default=None)


def _step_of(state: Path) -> int | None:
    number = state.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else None
