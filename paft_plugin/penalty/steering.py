"""Steering λ to a wanted sparsity during a run: the controller, what it sees, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from paft_plugin.errors import PaftError
from paft_plugin.penalty.controller import TargetSparsity
from paft_plugin.penalty.live import LiveDelta
from paft_plugin.penalty.settling import SettlingSample, settled_learning_rate
from paft_plugin.penalty.strength import Progress


class Steering:
    """λ of each step, moved so that sparsity at `threshold` ends at `target`."""

    forecast: float | None = None
    """The sparsity that the run is heading for."""

    def __init__(self, start: float, target: float, threshold: float) -> None:
        self._controller = TargetSparsity(start, target)
        self._threshold = threshold

    def begin(self, deltas: Sequence[LiveDelta], scheduler: LRScheduler, steps_left: int) -> None:
        """Choose the entries to watch, and find out where the learning rate is going."""
        self._sample = SettlingSample(deltas)
        self._settled_rate = settled_learning_rate(scheduler, steps_left)

    def at(self, progress: Progress) -> float:
        """λ of the step that follows."""
        return self._controller.at(progress)

    def weigh_gradients(self, task: float, penalty: float) -> None:
        """Compare the norm of the task's gradient with that of the norm's subgradient, λ left out."""
        if task > 0 and penalty > 0:
            self._controller.weigh(task / penalty)

    def weigh_movement(self, learning_rate: float) -> None:
        """Compare how far the optimizer step moved δ with how far soft-thresholding will, λ left out."""
        moved = self._sample.movement()
        if moved > 0 and learning_rate > 0:
            self._controller.weigh(moved / learning_rate)

    def look(self, progress: Progress, optimizer: Optimizer) -> None:
        """Take in where the step led."""
        rate = float(optimizer.param_groups[0]["lr"])
        decay = self._settled_rate / rate if rate else 1.0
        self._sample.look()
        self.forecast = self._sample.settling(self._threshold, decay)
        self._controller.observe(progress, self.forecast)

    def state(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint, as JSON."""
        return {"controller": self._controller.state(), "sample": self._sample.state()}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` returned, after `begin`.

        Raises:
            PaftError: if there is none: the checkpoint's run had no target.
        """
        if state is None:
            raise PaftError("paft_target_sparsity: the checkpoint was written without it: start anew, or remove it")
        self._controller.restore(state["controller"])
        self._sample.restore(state["sample"])
