"""How far a training is, from the log that it writes: tqdm's bar and the metrics that transformers prints.

`Starting trainer...` is axolotl's own line. The first bar without a description after it is the Trainer's (`tqdm` in
transformers/trainer_callback.py), later ones of another length are evaluations. Metrics stand on a line of their own, as a
dictionary with an `epoch`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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
