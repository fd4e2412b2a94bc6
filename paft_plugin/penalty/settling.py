"""Forecasting sparsity: a fixed random sample of δ's entries, and which of them the penalty holds at zero.

While the learning rate is high, an entry that the penalty holds at zero does not rest there: the subgradient and the optimizer
throw it to and fro across zero, further than any useful threshold, and sparsity shows only when the learning rate has fallen.
Crossing zero shows at once. The share of entries that crossed zero within the last few steps, or are small already, forecasts the
final sparsity to a few points from the middle of a run on, and earlier too low (LOG.md has the measurements); that makes it what
a controller can steer by.
Our own device: neither the paper nor anyone since had one.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from paft_plugin.penalty.live import LiveDelta

SAMPLE_SIZE = 1 << 15  # a share of .9 is known to ± .0017 (one standard error)
WINDOW = 9  # steps; some held entries swing slowly: 5 steps see 15 points too few in one set-up (LOG.md)
FREEZE = 3  # steps; what the last ones still move hardly gets over a threshold again (LOG.md)


class SettlingSample:
    """The sign of each sampled entry, and how many steps ago it last crossed zero."""

    def __init__(self, deltas: Sequence[LiveDelta], size: int = SAMPLE_SIZE, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        total = sum(delta.entries for delta in deltas)
        self._places: list[tuple[LiveDelta, Tensor]] = []
        for delta in deltas:
            quota = round(size * delta.entries / total)
            if quota:
                indices = torch.randint(delta.entries, (quota,), generator=generator)
                self._places.append((delta, indices.to(delta.device)))
        count = sum(len(indices) for _, indices in self._places)
        self._values = torch.zeros(count)
        self._signs = torch.zeros(count, dtype=torch.int8)
        self._age = torch.full((count,), WINDOW, dtype=torch.uint8)

    def look(self) -> None:
        """Take in where the last optimizer step led."""
        self._values = self._read()
        signs = self._values.sign().to(torch.int8)
        crossed = signs * self._signs <= 0
        self._age = torch.where(crossed, 0, (self._age + 1).clamp_(max=WINDOW))
        self._signs = signs

    def movement(self) -> float:
        """How far the entries are by now, on average, from where they were at the last `look`."""
        return (self._read() - self._values).abs().mean().item()

    def settling(self, threshold: float, decay: float) -> float:
        """Share of entries that are small, or that crossed zero within the window and will be small.

        Args:
            threshold: what counts as small.
            decay: how much less far they will swing in the end: the last learning rate over the present one.
        """
        size = self._values.abs()
        return ((size <= threshold) | ((self._age < WINDOW) & (size * decay <= threshold))).float().mean().item()

    def state(self) -> str:
        """Signs and ages, for a checkpoint: one byte an entry, in base64."""
        packed = (self._signs + 1).to(torch.uint8) + 3 * self._age
        return base64.b64encode(packed.numpy().tobytes()).decode("ascii")

    def restore(self, state: str) -> None:
        """Go on from what `state` returned; the values themselves are read anew."""
        packed = torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8)
        self._signs = (packed % 3).to(torch.int8) - 1
        self._age = packed // 3
        self._values = self._read()

    @torch.no_grad()
    def _read(self) -> Tensor:
        return torch.cat([delta.sample(indices).cpu() for delta, indices in self._places])


def settled_learning_rate(scheduler: LRScheduler, steps_left: int) -> float:
    """The first group's learning rate `FREEZE` steps before the last of `steps_left`, after which nothing settles any more.

    Found by running a copy of the scheduler ahead. One that waits for a metric is taken to stay where it is.
    """
    groups = [{**group, "params": []} for group in scheduler.optimizer.param_groups]
    if not isinstance(scheduler, ReduceLROnPlateau):
        stand_in = SimpleNamespace(param_groups=groups, step=scheduler.optimizer.step, _opt_called=True)
        ahead = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
        for _ in range(steps_left - 1 - FREEZE):
            ahead.step()
    return float(groups[0]["lr"])
