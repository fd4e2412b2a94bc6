"""λ that steers itself to a wanted sparsity (`paft_target_sparsity`).

A proportional-integral controller on log₁₀ λ. What it sees is the forecast of `settling.py`, on the log-odds scale, where the
response to log λ is the same within a factor of about two, wherever one starts: two to five per decade in the set-ups measured
(LOG.md). Gains are in units of the whole run, so that a short and a long run are steered alike.
"""

from __future__ import annotations

import math
from typing import Any

from paft_plugin.penalty.strength import Progress
from paft_plugin.target import log_odds

PROPORTIONAL = 0.1  # decades of λ per unit of log-odds
INTEGRAL = 10.0  # decades of λ per unit of log-odds and run
LANDING = 3.0  # the same, over what is left of the run: late, when the learning rate is low, λ has little time to act
LARGEST_ERROR = 1.0  # log-odds; a forecast farther off says no more than "far away"
LARGEST_MOVE = 0.15  # decades a step
FIRST_LOOK = 8  # steps: before, too few have passed to see who crosses zero
CERTAIN = 1e-3  # shares closer than this to 0 and 1 are beyond the sample
BAND = (0.02, 5.0)  # the penalty's pull over the task's: below, it does nothing; above, it drowns the task
MEMORY = 0.9  # of the smoothed balance of the two, per step


class TargetSparsity:
    """The strength of each step, from the sparsity that the ones before it lead to."""

    def __init__(self, start: float, target: float) -> None:
        """Start at λ = `start` > 0; steer to `target`, a share in (0, 1)."""
        self._log_strength = math.log10(start)
        self._target = log_odds(target, CERTAIN)
        self._last_error: float | None = None
        self._log_balance: float | None = None

    def at(self, progress: Progress) -> float:
        """λ of the step that follows; 0 until the first `weigh`, because a wild start could wreck the model in one step."""
        return 0.0 if self._log_balance is None else 10.0**self._log_strength

    def weigh(self, balance: float) -> None:
        """Keep λ where it can matter, which makes where it started almost irrelevant.

        Args:
            balance: the λ > 0 at which the penalty pulls as hard as the task.
        """
        new = math.log10(balance)
        old = new if self._log_balance is None else self._log_balance
        self._log_balance = MEMORY * old + (1 - MEMORY) * new
        lowest, highest = (self._log_balance + math.log10(edge) for edge in BAND)
        self._log_strength = max(lowest, min(highest, self._log_strength))

    def observe(self, progress: Progress, forecast: float) -> None:
        """Learn the sparsity that the run would end at with λ as it is."""
        if progress.done < FIRST_LOOK:
            return
        error = self._target - log_odds(forecast, CERTAIN)
        error = max(-LARGEST_ERROR, min(LARGEST_ERROR, error))
        change = 0.0 if self._last_error is None else error - self._last_error
        left = progress.total - progress.done
        move = PROPORTIONAL * change + (INTEGRAL / progress.total + LANDING / (left + 1)) * error
        self._log_strength += max(-LARGEST_MOVE, min(LARGEST_MOVE, move))
        self._last_error = error

    def state(self) -> dict[str, float | None]:
        """What has to be saved with a checkpoint, as JSON."""
        return {
            "log_strength": self._log_strength,
            "last_error": self._last_error,
            "log_balance": self._log_balance,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._log_strength = state["log_strength"]
        self._last_error = state["last_error"]
        self._log_balance = state["log_balance"]
