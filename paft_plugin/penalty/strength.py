"""Strength λ over a run: what chooses it for each optimizer step, and whether it led where it should.

Without a target, λ follows a `Schedule`. With one, `Steering` moves it after every step, from a forecast and by a controller. The
sparsity of the moment says little: an entry that the penalty holds swings around zero as far as the learning rate lets it, and is
small only once that has fallen. So a `SettlingSample` watches some entries and foretells how many will be small in the end, and
`TargetSparsity` moves λ by factors until the forecast meets the target. Errors are in log-odds, by which from .98 to .99 is as
far as from .5 to .67. `too_few_steps` and `missed_target` say what a user should know before a run and after it. Where the
constants come from is told in penalty/LOG.md.

torch is imported only where it is needed, because `init` and the report ask for no more than the last two.
"""

from __future__ import annotations

import base64
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_plugin.deltas.proof import Proof
from paft_plugin.errors import PaftError
from paft_plugin.formats import share, threshold_key, threshold_label

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from paft_plugin.penalty.live import LiveDelta

# The controller.
PROPORTIONAL = 0.1  # decades of λ per unit of log-odds
INTEGRAL = 10.0  # decades of λ per unit of log-odds and run
LANDING = 3.0  # the same, over what is left of the run: late, when the learning rate is low, λ has little time to act
LARGEST_ERROR = 1.0  # log-odds; a forecast farther off says no more than "far away"
LARGEST_MOVE = 0.15  # decades a step
FIRST_LOOK = 8  # steps: before, too few have passed to see who crosses zero
LEAST_SHARE = 1e-3  # shares closer than this to 0 and 1 are beyond the sample
BAND = (0.02, 5.0)  # the penalty's pull over the task's: below, it does nothing; above, it drowns the task
MEMORY = 0.9  # of the smoothed balance of the two, per step

# The forecast.
SAMPLE_SIZE = 1 << 15  # a share of .9 is known to ± .0017 (one standard error)
WINDOW = 9  # steps; some held entries swing slowly: 5 steps see 15 points too few in one set-up
FREEZE = 3  # steps; what the last ones still move hardly gets over a threshold again

ENOUGH_STEPS = 60
"""Optimizer steps with which the demo's SFT branch came from far to .9 ± .013; with 40 it ended at .74."""
TOLERANCE = 0.5
"""Log-odds: .85 to .94 around .9. What steering leaves is .14 at most; farther off, something went wrong."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands, in optimizer steps."""

    done: int
    total: int


@dataclass(frozen=True)
class Schedule:
    """A constant λ, after a linear warm-up: from λ/n to λ over the n steps that are `warmup_ratio` of the run."""

    strength: float
    warmup_ratio: float = 0.0

    def at(self, progress: TrainingProgress) -> float:
        """λ of the step that follows."""
        steps = max(1, round(self.warmup_ratio * progress.total))
        return self.strength * min(1.0, (progress.done + 1) / steps)


def log_odds(share: float, least: float = 1e-6) -> float:
    """ln(p / (1 − p)) of a share p in [0, 1], which counts as no closer to 0 and 1 than `least`."""
    share = max(least, min(1 - least, share))
    return math.log(share / (1 - share))


class TargetSparsity:
    """The controller: λ of each step, from the sparsity that the ones before it lead to."""

    def __init__(self, start: float, target: float) -> None:
        """Start at λ = `start` > 0; steer to `target`, a share in (0, 1)."""
        self._log_strength = math.log10(start)
        self._target = log_odds(target, LEAST_SHARE)
        self._last_error: float | None = None
        self._log_balance: float | None = None

    def at(self, progress: TrainingProgress) -> float:
        """λ of the step that follows; 0 until the first `weigh`, because a wild start could wreck the model in one step."""
        return 0.0 if self._log_balance is None else 10.0**self._log_strength

    def weigh(self, balance: float) -> None:
        """Keep λ near `balance` > 0, at which the penalty pulls as hard as the task: where it started hardly matters then."""
        new = math.log10(balance)
        old = new if self._log_balance is None else self._log_balance
        self._log_balance = MEMORY * old + (1 - MEMORY) * new
        lowest, highest = (self._log_balance + math.log10(edge) for edge in BAND)
        self._log_strength = max(lowest, min(highest, self._log_strength))

    def observe(self, progress: TrainingProgress, forecast: float) -> None:
        """Learn the sparsity that the run would end at with λ as it is."""
        if progress.done < FIRST_LOOK:
            return
        error = self._target - log_odds(forecast, LEAST_SHARE)
        error = max(-LARGEST_ERROR, min(LARGEST_ERROR, error))
        change = 0.0 if self._last_error is None else error - self._last_error
        left = progress.total - progress.done
        move = PROPORTIONAL * change + (INTEGRAL / progress.total + LANDING / (left + 1)) * error
        self._log_strength += max(-LARGEST_MOVE, min(LARGEST_MOVE, move))
        self._last_error = error

    def state(self) -> dict[str, float | None]:
        """What has to be saved with a checkpoint, as JSON."""
        return {name: getattr(self, f"_{name}") for name in ("log_strength", "last_error", "log_balance")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._log_strength, self._last_error = state["log_strength"], state["last_error"]
        self._log_balance = state["log_balance"]


class SettlingSample:
    """The forecast: the sign of each sampled entry, and how many steps ago it last crossed zero.

    An entry that the penalty holds near zero swings around it; one that the task wants stays on its side.
    """

    def __init__(self, deltas: Sequence[LiveDelta], size: int = SAMPLE_SIZE) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
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
        signs = self._values.sign().char()
        crossed = signs * self._signs <= 0
        self._age = (self._age + 1).clamp_(max=WINDOW).masked_fill_(crossed, 0)
        self._signs = signs

    def movement(self) -> float:
        """How far the entries are by now, on average, from where they were at the last `look`."""
        return (self._read() - self._values).abs().mean().item()

    def settling(self, threshold: float, decay: float) -> float:
        """Share of entries that are small, or that crossed zero within the window and will be small.

        `decay`: how much less far they will swing in the end, which is the last learning rate over the present one.
        """
        size = self._values.abs()
        return ((size <= threshold) | ((self._age < WINDOW) & (size * decay <= threshold))).float().mean().item()

    def state(self) -> str:
        """Signs and ages, for a checkpoint: one byte an entry, in base64."""
        packed = (self._signs + 1).byte() + 3 * self._age
        return base64.b64encode(packed.numpy().tobytes()).decode("ascii")

    def restore(self, state: str) -> None:
        """Go on from what `state` returned; the values themselves are read anew."""
        import torch

        packed = torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8)
        self._signs = (packed % 3).char() - 1
        self._age = packed // 3
        self._values = self._read()

    def _read(self) -> Tensor:
        import torch

        with torch.no_grad():
            return torch.cat([delta.sample(indices).cpu() for delta, indices in self._places])


def settled_learning_rate(scheduler: LRScheduler, steps_left: int) -> float:
    """The first group's learning rate `FREEZE` steps before the last of `steps_left`, after which nothing settles any more.

    Found by running a copy of the scheduler ahead. One that waits for a metric is taken to stay where it is.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    from paft_plugin.penalty.torch_private import stand_in

    groups = [{**group, "params": []} for group in scheduler.optimizer.param_groups]
    if not isinstance(scheduler, ReduceLROnPlateau):
        ahead = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in(scheduler.optimizer, groups)})
        for _ in range(steps_left - 1 - FREEZE):
            ahead.step()
    return float(groups[0]["lr"])


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

    def at(self, progress: TrainingProgress) -> float:
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

    def look(self, progress: TrainingProgress, optimizer: Optimizer) -> None:
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
        """Go on from what `state` returned, after `begin`; None, from a run that had no target, is a `PaftError`."""
        if state is None:
            raise PaftError("paft_target_sparsity: the checkpoint was written without it: start anew, or remove it")
        self._controller.restore(state["controller"])
        self._sample.restore(state["sample"])


def too_few_steps(target: float | None, steps: int) -> str | None:
    """What to say of a training of so many optimizer steps before it begins; None if they suffice, or it has no target."""
    if target is None or steps >= ENOUGH_STEPS:
        return None
    return (
        f"paft_target_sparsity: {steps} steps are few: it took {ENOUGH_STEPS} for λ to find itself and for the delta to shrink. "
        "Train on more rows, for more epochs, or with fewer rows a step, or set paft_l1_lambda alone."
    )


def missed_target(proof: Proof) -> str | None:
    """What to say of a finished training that ended far from its target; None if it had none, or met it."""
    target, threshold = proof.target_sparsity, proof.target_threshold
    if target is None or threshold is None or not proof.finished or not proof.history:
        return None
    ended = (proof.sparsity or {}).get(threshold_key(threshold))
    if ended is None or abs(log_odds(ended) - log_odds(target)) <= TOLERANCE:
        return None
    last = proof.history[-1]
    more = f"for {ENOUGH_STEPS} steps or more (more epochs, fewer rows a step)"
    longer = more if last.step < ENOUGH_STEPS else "for longer"
    return (
        f"paft_target_sparsity: {target:g} was missed: {share(ended)} of the delta's entries are at or under "
        f"{threshold_label(threshold)}. λ had come to {last.strength:.2g} by step {last.step}: train {longer}, and let it start "
        f"there (paft_l1_lambda: {last.strength:.1e})."
    )
