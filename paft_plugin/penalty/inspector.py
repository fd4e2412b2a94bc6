"""What δ looks like while it is trained: figures by kind of module for every logger, and a histogram where one takes it.

The figures go straight to the loggers' `on_log`, not through `Trainer.log`: subclasses of that empty their own running metrics at
every call, and callbacks read back what it adds to `log_history` (axolotl's loss watchdog looks for a loss in the last entry). So
a run that is inspected takes the same steps and reports the same losses as one that is not.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from copy import copy

from transformers import PrinterCallback, ProgressCallback, Trainer

from paft_plugin.errors import some
from paft_plugin.penalty.base_norms import base_square
from paft_plugin.penalty.histograms import log_histogram, log_magnitudes
from paft_plugin.penalty.live import LiveDelta
from paft_plugin.penalty.tally import Measurable, Tally, hoyer, measurable, tally, top_share, total
from paft_plugin.thresholds import threshold_label

logger = logging.getLogger(__name__)

PREFIX = "paft/inspect"
TOP = 0.01
CONSOLE = (PrinterCallback, ProgressCallback)  # dozens of figures in one line are for nobody to read
# What PEFT and torch put around the name of the module that is changed.
WRAPPING = re.compile(
    r"\.(base_layer|token_adapter|modules_to_save\.[^.]+|trainable_tokens_delta\.[^.]+|weight|bias)\b"
)


class Inspector:
    """Looks at a trainer's deltas every so many optimizer steps, and after the last one."""

    def __init__(self, trainer: Trainer, every: int, thresholds: Sequence[float]) -> None:
        self._trainer = trainer
        self._every = every
        self._thresholds = thresholds
        self._kinds: dict[str, list[Measurable]] = {}
        self._base: dict[str, float | None] = {}
        self._inspected_at: int | None = None

    def begin(self, deltas: Sequence[LiveDelta]) -> None:
        """Start, or resume: the schedule hangs on the step's number alone."""
        self._kinds = {}
        for delta in deltas:
            self._kinds.setdefault(kind_of(delta.name), []).append(measurable(delta))
        self._base = {}
        self._inspected_at = None

    def after_step(self) -> None:
        """Inspect if it is time; every process must take part."""
        if self._trainer.state.global_step % self._every == 0:
            self._inspect()

    def after_last_step(self) -> None:
        """Inspect what training ends with, unless that has just been done."""
        if self._inspected_at != self._trainer.state.global_step:
            self._inspect()

    def _inspect(self) -> None:
        trainer, state, control = self._trainer, self._trainer.state, self._trainer.control
        self._inspected_at = state.global_step
        self._base = self._base or self._base_squares()
        kinds = {
            kind: total(tally(delta, self._thresholds) for delta in deltas) for kind, deltas in self._kinds.items()
        }
        whole = total(kinds.values())
        figures = self._figures(PREFIX, whole, _sum_if_known(self._base.values()))
        for kind, one in kinds.items():
            figures |= self._figures(f"{PREFIX}/{kind}", one, self._base[kind])
        loggers = copy(trainer.callback_handler)
        loggers.callbacks = [one for one in loggers.callbacks if not isinstance(one, CONSOLE)]
        due = control.should_log
        loggers.on_log(trainer.args, state, control, {**figures, "epoch": state.epoch})
        control.should_log = due  # which on_log takes for done
        histogram = log_magnitudes(whole)
        if state.is_world_process_zero and histogram is not None:
            log_histogram(loggers.callbacks, f"{PREFIX}/log10_delta", histogram, state.global_step)

    def _figures(self, prefix: str, one: Tally, base: float | None) -> dict[str, float]:
        zeros, *small = (count / one.entries for count in one.small.tolist())
        labels = [f"sparsity@{threshold_label(threshold)}" for threshold in self._thresholds]
        figures = {
            "zeros": zeros,
            **dict(zip(labels, small, strict=True)),
            "l1_norm": one.l1,
            "l2_norm": math.sqrt(one.square),
            "max": one.largest,
        }
        if one.square > 0 and one.entries > 1:
            figures |= {"hoyer": hoyer(one), "top_1_percent_mass": top_share(one, TOP)}
        if base:
            figures["relative_l2"] = math.sqrt(one.square / base)
        if one.products:
            figures["effective_rank"] = one.rank / one.products
        return {f"{prefix}/{name}": value for name, value in figures.items()}

    def _base_squares(self) -> dict[str, float | None]:
        """‖θ_pre‖₂² by kind, None where it is not known of every tensor."""
        squares = {
            kind: {delta.name: base_square(self._trainer.model, delta) for delta in deltas}
            for kind, deltas in self._kinds.items()
        }
        unknown = [name for group in squares.values() for name, square in group.items() if square is None]
        if unknown:
            logger.warning(
                "paft_inspect_steps: relative_l2 is left out where the base weights are not stored as numbers: %s",
                some(unknown),
            )
        return {kind: _sum_if_known(group.values()) for kind, group in squares.items()}


def kind_of(name: str) -> str:
    """The kind of a module, whichever layer it is in: `q_proj` of `model.layers.3.self_attn.q_proj.weight`."""
    parts = WRAPPING.sub("", f".{name}").split(".")
    return next((part for part in reversed(parts) if part and not part.isdigit()), name)


def _sum_if_known(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else math.fsum(value for value in known if value is not None)
