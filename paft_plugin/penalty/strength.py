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
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paft_plugin.deltas.proof import Proof
from paft_plugin.errors import PaftError
from paft_plugin.files import read_json
from paft_plugin.formats import plain_number, share, threshold_key

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

# The bound on the loss.
AIM = 0.65  # of the bound; the rest is for what the loss still does while λ is on its way
LOSS_MEMORY = 5.0  # steps over which the increase is smoothed
HORIZON = 0.2  # of the run: what λ does to the loss shows only then
LOSS_PROPORTIONAL = 0.2  # decades of λ per change by the bound's aim
LOSS_INTEGRAL = 5.0  # decades of λ per aim and run
BRAKE = 0.5  # decades that λ gives way at once per aim of excess
LARGEST_BRAKE = 2.0
SLACK = 0.5  # decades by which the controller that does not count may be above the other

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

    @property
    def is_within(self) -> bool:
        """Whether the step that follows is one of these: the penalty may act in a part of the run alone."""
        return 0 <= self.done < self.total

    def part(self, begin: float, end: float) -> TrainingProgress:
        """Where the part of the run between two shares of it stands."""
        first, last = round(begin * self.total), round(end * self.total)
        return TrainingProgress(self.done - first, last - first)


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


class Controller:
    """λ of each step, moved by factors."""

    _SAVED: ClassVar[tuple[str, ...]] = ("log_strength", "last_error", "log_balance")

    def __init__(self, start: float) -> None:
        """Start at λ = `start` > 0."""
        self._log_strength = math.log10(start)
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

    def stay_near(self, strength: float) -> None:
        """Not wander off above λ = `strength` > 0, while that is what counts."""
        self._log_strength = min(self._log_strength, math.log10(strength) + SLACK)

    def state(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint, as JSON."""
        return {name: getattr(self, f"_{name}") for name in self._SAVED}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name in self._SAVED:
            setattr(self, f"_{name}", state[name])


class TargetSparsity(Controller):
    """Steers by the sparsity that the steps so far lead to."""

    def __init__(self, start: float, target: float) -> None:
        """Start at λ = `start` > 0; steer to `target`, a share in (0, 1)."""
        super().__init__(start)
        self._target = log_odds(target, LEAST_SHARE)

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


class LossBound(Controller):
    """Steers by how much the task loss is above that of the same training without a penalty, at the same step.

    The same seed gives the same batches, so the two are compared window by window of the reference's logged steps: what one batch
    is luckier than another is gone from the difference. λ grows while the increase is below `AIM` of the bound and shrinks above
    it; beyond that a brake acts at once, since λ itself is moved slowly.
    """

    _SAVED = (*Controller._SAVED, "increase", "trend", "sum", "count")

    def __init__(self, start: float, bound: float, reference: ReferenceLoss) -> None:
        """Start at λ = `start` > 0; `bound` > 0 in nats a token."""
        super().__init__(start)
        self._aim = AIM * bound
        self._reference = reference
        self._increase: float | None = None
        self._trend = 0.0  # of the increase, a step
        self._sum, self._count = 0.0, 0

    @property
    def increase(self) -> float | None:
        """Of the loss over the reference's, smoothed; None until both are known."""
        return self._increase

    @property
    def waiting(self) -> int:
        """Steps since the last comparison."""
        return self._count

    def at(self, progress: TrainingProgress) -> float:
        """λ of the step that follows, braked."""
        excess = max(0.0, (self._increase or 0.0) / self._aim - 1)
        return super().at(progress) * 10.0 ** -min(LARGEST_BRAKE, BRAKE * excess)

    def take(self, step: int, loss: float) -> bool:
        """Take in the task loss of the batch of the `step`-th step, if it is a number; whether it was compared."""
        if math.isfinite(loss):
            self._sum, self._count = self._sum + loss, self._count + 1
        expected = self._reference.at(step)
        if expected is None or not self._count:
            return False
        new, weight = self._sum / self._count - expected, 1 - (1 - 1 / LOSS_MEMORY) ** self._count
        before = new if self._increase is None else self._increase
        self._increase = (1 - weight) * before + weight * new
        self._trend = (self._increase - before) / self._count
        self._sum, self._count = 0.0, 0
        return True

    def observe(self, progress: TrainingProgress, steps: int) -> None:
        """Move λ by the increase, which has been compared anew after `steps`."""
        if self._increase is None:
            return
        ahead = self._increase + self._trend * HORIZON * progress.total
        error = max(-2.0, min(1.0, 1 - ahead / self._aim))
        change = 0.0 if self._last_error is None else error - self._last_error
        move = LOSS_PROPORTIONAL * change + LOSS_INTEGRAL * steps / progress.total * error
        self._log_strength += max(-LARGEST_MOVE * steps, min(LARGEST_MOVE * steps, move))
        self._last_error = error


@dataclass(frozen=True)
class ReferenceLoss:
    """What the loss would be without a penalty: a curve, or one number for what a run ends at."""

    losses: Mapping[int, float]
    """Optimizer step → mean loss since the one before; empty if there is the number alone."""
    total: int | None = None
    """Steps of the run that the curve is of."""
    end: float | None = None

    def at(self, step: int) -> float | None:
        """The loss that `step` is compared with, if it is."""
        return self.losses.get(step, self.end)

    def why_not_of(self, steps: int) -> list[str]:
        """A problem if the curve is not that of a run of so many steps."""
        if self.end is not None or (self.total in (None, 0, steps) and max(self.losses) > 0.9 * steps):
            return []
        return [
            f"paft_reference_loss: it has losses until step {max(self.losses)} of {self.total}, and this run has {steps} steps: "
            "give the curve of the same training without a penalty, to its end"
        ]


def read_reference_loss(given: str | float) -> ReferenceLoss:
    """A number, a `trainer_state.json`, or the folder of a finished training, whose last checkpoint holds one.

    Raises:
        PaftError: there is no such file, or it holds no losses.
    """
    try:
        end = float(given)  # YAML 1.1 reads 7e-2 as text
    except ValueError:
        pass
    else:
        if not math.isfinite(end):
            raise PaftError(f"paft_reference_loss: {given} is no loss: give a number, or the folder of a training")
        return ReferenceLoss({}, end=end)
    file, key = Path(str(given)), "paft_reference_loss"
    if file.is_dir():
        states = (path for path in file.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdecimal())
        found = sorted(states, key=lambda path: int(path.parent.name[11:]))
        if not found:
            raise PaftError(
                f"{key}: {file} holds no checkpoint with a trainer_state.json: train it with save_strategy: steps"
            )
        file = found[-1]
    state = read_json(file)
    points = [point for point in state.get("log_history") or [] if isinstance(point, dict)]
    losses = {int(point["step"]): float(point["loss"]) for point in points if {"step", "loss"} <= point.keys()}
    if not losses:
        raise PaftError(f"{key}: {file} holds no losses: train with logging_steps: 10 or less")
    return ReferenceLoss(losses, int(state.get("max_steps") or 0))


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
    from paft_plugin.penalty.torch_private import stand_in

    groups = [{**group, "params": []} for group in scheduler.optimizer.param_groups]
    if "metrics" not in inspect.signature(scheduler.step).parameters:
        ahead = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in(scheduler.optimizer, groups)})
        for _ in range(steps_left - 1 - FREEZE):
            ahead.step()
    return float(groups[0]["lr"])


class Steering:
    """λ of each step, moved so that sparsity at `threshold` ends at `target`, and the loss stays within `bound`.

    One of the two may be missing. The smaller λ of both counts: the target is a wish.
    """

    forecast: float | None = None
    """The sparsity that the run is heading for."""

    def __init__(self, start: float, target: float | None, threshold: float, bound: LossBound | None = None) -> None:
        self._target = None if target is None else TargetSparsity(start, target)
        self._bound = bound
        self._controllers: list[TargetSparsity | LossBound] = [one for one in (self._target, bound) if one is not None]
        self._threshold = threshold

    @property
    def increase(self) -> float | None:
        """Of the task loss over the reference's, in nats a token."""
        return None if self._bound is None else self._bound.increase

    def begin(self, deltas: Sequence[LiveDelta], scheduler: LRScheduler, steps_left: int) -> None:
        """Choose the entries to watch, and find out where the learning rate is going."""
        self._sample = SettlingSample(deltas)
        self._settled_rate = settled_learning_rate(scheduler, steps_left)

    def at(self, progress: TrainingProgress) -> float:
        """λ of the step that follows."""
        strength = min(one.at(progress) for one in self._controllers)
        if strength and len(self._controllers) > 1:
            for one in self._controllers:
                one.stay_near(strength)
        return strength

    def take_loss(self, progress: TrainingProgress, loss: float, step: int) -> None:
        """Take in the task loss of the batch of the `step`-th step, before λ of that step is chosen."""
        if self._bound is None:
            return
        steps = self._bound.waiting + 1
        if self._bound.take(step, loss) and progress.is_within:
            self._bound.observe(progress, steps)

    def weigh_gradients(self, task: float, penalty: float) -> None:
        """Compare the norm of the task's gradient with that of the norm's subgradient, λ left out."""
        if task > 0 and penalty > 0:
            self._weigh(task / penalty)

    def weigh_movement(self, learning_rate: float) -> None:
        """Compare how far the optimizer step moved δ with how far soft-thresholding will, λ left out."""
        moved = self._sample.movement()
        if moved > 0 and learning_rate > 0:
            self._weigh(moved / learning_rate)

    def _weigh(self, balance: float) -> None:
        # A step whose gradients overflowed, which fp16's scaler skips, says nothing, and its infinity would stay for good.
        for one in self._controllers if math.isfinite(balance) else ():
            one.weigh(balance)

    def look(self, progress: TrainingProgress, optimizer: Optimizer) -> None:
        """Take in where the step led."""
        rate = float(optimizer.param_groups[0]["lr"])
        decay = self._settled_rate / rate if rate else 1.0
        self._sample.look()
        self.forecast = self._sample.settling(self._threshold, decay)
        if self._target is not None and progress.is_within:
            self._target.observe(progress, self.forecast)

    def state(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint, as JSON."""
        states = {"controller": self._target, "bound": self._bound}
        return {
            **{name: one.state() for name, one in states.items() if one is not None},
            "sample": self._sample.state(),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` returned, after `begin`; None, from a run that had no target, is a `PaftError`."""
        owners = {
            "controller": ("paft_target_sparsity", self._target),
            "bound": ("paft_max_loss_increase", self._bound),
        }
        for name, (key, one) in owners.items():
            if one is None:
                continue
            if state is None or name not in state:
                raise PaftError(f"{key}: the checkpoint was written without it: start anew, or remove it")
            one.restore(state[name])
        assert state is not None
        self._sample.restore(state["sample"])


def too_few_steps(target: float | None, steps: int) -> str | None:
    """What to say of a training of so many optimizer steps before it begins; None if they suffice, or it has no target."""
    if target is None or steps >= ENOUGH_STEPS:
        return None
    return (
        f"paft_target_sparsity: {steps} steps are few: it took {ENOUGH_STEPS} for λ to find itself and for the delta to shrink. "
        "Train on more rows, for more epochs, or with fewer rows a step, or set paft_l1_lambda alone."
    )


def exceeded_bound(proof: Proof) -> str | None:
    """What to say of a finished training whose loss ended above its bound; None if it had none, or kept it."""
    bound, increase = proof.max_loss_increase, proof.loss_increase
    if bound is None or increase is None or increase <= bound:
        return None
    return (
        f"paft_max_loss_increase: {bound:g} was exceeded: the loss ended {increase:.2g} nats above its reference. Train for "
        "longer, or begin with a smaller λ (paft_l1_lambda)."
    )


def missed_target(proof: Proof) -> str | None:
    """What to say of a finished training that ended far from its target; None if it had none, or met it."""
    target, threshold = proof.target_sparsity, proof.target_threshold
    if target is None or threshold is None or not proof.finished or not proof.history:
        return None
    ended = (proof.sparsity or {}).get(threshold_key(threshold))
    if ended is None or abs(log_odds(ended) - log_odds(target)) <= TOLERANCE:
        return None
    if proof.max_loss_increase is not None:
        return (
            f"paft_target_sparsity: {target:g} was not reached: {share(ended)} of the delta's entries are at or under "
            f"{plain_number(threshold)}; paft_max_loss_increase: {proof.max_loss_increase:g} came first."
        )
    last = proof.history[-1]
    more = f"for {ENOUGH_STEPS} steps or more (more epochs, fewer rows a step)"
    longer = more if last.step < ENOUGH_STEPS else "for longer"
    return (
        f"paft_target_sparsity: {target:g} was missed: {share(ended)} of the delta's entries are at or under "
        f"{plain_number(threshold)}. λ had come to {last.strength:.2g} by step {last.step}: train {longer}, and let it start "
        f"there (paft_l1_lambda: {last.strength:.1e})."
    )
