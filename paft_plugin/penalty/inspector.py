"""What δ looks like while it is trained: figures by kind of module for every logger, and a histogram where one takes it.

`Inspector` decides when and logs; below it stand the norm of the base weights, read as they are stored, and the histogram.
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
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from paft_plugin.deltas.measures import OCTAVES, hoyer
from paft_plugin.errors import some
from paft_plugin.formats import plain_number
from paft_plugin.penalty.l1 import square_of_difference
from paft_plugin.penalty.live import ExpertsDelta, FullDelta, LiveDelta
from paft_plugin.penalty.sharded import local, sum_over_shards
from paft_plugin.penalty.tally import LiveTally, Measurable, measurable, tally, total

logger = logging.getLogger(__name__)

PREFIX = "paft/inspect"
TOP = 0.01
CONSOLE = (PrinterCallback, ProgressCallback)  # dozens of figures in one line are for nobody to read
# What PEFT and torch put around the name of the module that is changed.
WRAPPING = re.compile(
    r"\.(base_layer|token_adapter|modules_to_save\.[^.]+|trainable_tokens_delta\.[^.]+|weight|bias)\b"
)
INT8_LARGEST = 127  # bitsandbytes' weight is int8 × the row's scale / this
ROWS = 1024  # of an int8 weight that are widened at a time
QUANTISED = ("Linear4bit", "Linear8bitLt")


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

    def _figures(self, prefix: str, one: LiveTally, base: float | None) -> dict[str, float]:
        zeros, *small = (count / one.entries for count in one.small.tolist())
        labels = [f"sparsity@{plain_number(threshold)}" for threshold in self._thresholds]
        figures = {
            "zeros": zeros,
            **dict(zip(labels, small, strict=True)),
            "l1_norm": one.l1,
            "l2_norm": math.sqrt(one.square),
            "max": one.largest,
            "hoyer": hoyer(one.entries, one.l1, one.square),
            "top_1_percent_mass": one.magnitudes.top_share(TOP),
            "relative_l2": math.sqrt(one.square / base) if base else None,
            "effective_rank": one.rank / one.products if one.products else None,
        }
        return {f"{prefix}/{name}": value for name, value in figures.items() if value is not None}

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


@torch.no_grad()
def base_square(model: nn.Module, delta: Measurable) -> float | None:
    """‖θ_pre‖₂² of what `delta` is added to, over all shards; None where it is stored as something else than numbers.

    bitsandbytes' 4-bit weights are unpacked one at a time, as each forward pass does. `delta` is one of the model's, whatever it
    has become by now.
    """
    if isinstance(delta, FullDelta):
        return sum_over_shards(square_of_difference(delta.reference, None).to(delta.device), delta.parameter).item()
    if isinstance(delta, ExpertsDelta):
        wrapper = model.get_submodule(delta.name.rpartition(".")[0])
        assert isinstance(wrapper, ParamWrapper)
        return _square_of_weight(wrapper.get_param())
    adapted = model.get_submodule(delta.name)
    assert isinstance(adapted, BaseTunerLayer)
    base = adapted.get_base_layer()
    if type(base).__name__ in QUANTISED:
        return _square_of_quantised(base)
    weight = getattr(base, "weight", None)
    return _square_of_weight(weight) if isinstance(weight, Tensor) else None


def _square_of_weight(weight: Tensor) -> float | None:
    # Narrower floats bear a scale somewhere else.
    if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
        return None
    return sum_over_shards(square_of_difference(local(weight), None), weight).item()


def _square_of_quantised(layer: Any) -> float | None:
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        # In evaluation, some CPUs repack the weight in a way that dequantize_4bit misreads.
        if weight.quant_state is None or getattr(weight.quant_state, "packing_format_for_cpu", False):
            return None
        from bitsandbytes.functional import dequantize_4bit

        return square_of_difference(dequantize_4bit(weight.data, weight.quant_state), None).item()
    if type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8:
        # The first forward pass moves them from the weight into the layer's state.
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        if scales is not None:
            rows = torch.cat([block.float().square().sum(1) for block in weight.data.split(ROWS)])
            return (rows.double() * (scales.double() / INT8_LARGEST).square()).sum().item()
    return None


@dataclass(frozen=True)
class DrawnHistogram:
    """A histogram as loggers take it: every entry lies between its edges."""

    counts: list[int]  # [N]
    edges: list[float]  # [N + 1], log₁₀|δ|


def log_magnitudes(tally: LiveTally) -> DrawnHistogram | None:
    """Of all entries of δ, from the smallest to the largest; None if one of them is infinite or no number.

    Whatever is below the lowest edge, about 1e-12, shares a bin of its own there, exact zeros included.
    """
    magnitudes = tally.magnitudes
    if not magnitudes.is_finite:
        return None
    histogram = magnitudes.histogram(OCTAVES, tally.zeros)
    counts = [histogram.zeros + histogram.underflow, *histogram.counts]
    edges = [histogram.log10_edges[0] - 0.5 * math.log10(2), *histogram.log10_edges]
    filled = [place for place, count in enumerate(counts) if count]
    low, high = filled[0], filled[-1] + 1
    return DrawnHistogram(counts[low:high], edges[low : high + 1])


def log_histogram(callbacks: Sequence[TrainerCallback], name: str, histogram: DrawnHistogram, step: int) -> None:
    """Hand `histogram` to each logger among `callbacks` that takes one, under the name that its scalars would get."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_histogram_raw(f"train/{name}", **_for_tensorboard(histogram), global_step=step)
        elif isinstance(callback, WandbCallback | TrackioCallback):
            library = import_module("wandb" if isinstance(callback, WandbCallback) else "trackio")
            drawn = library.Histogram(np_histogram=(histogram.counts, histogram.edges))
            library.log({f"train/{name}": drawn, "train/global_step": step})


def _for_tensorboard(histogram: DrawnHistogram) -> dict[str, Any]:
    counts = torch.tensor(histogram.counts, dtype=torch.float64)
    edges = torch.tensor(histogram.edges, dtype=torch.float64)
    middles = (edges[:-1] + edges[1:]) / 2
    return {
        "min": histogram.edges[0],
        "max": histogram.edges[-1],
        "num": counts.sum().item(),
        "sum": (counts * middles).sum().item(),
        "sum_squares": (counts * middles.square()).sum().item(),
        # An empty bucket first: a bucket begins where the one before it ends.
        "bucket_limits": histogram.edges,
        "bucket_counts": [0, *histogram.counts],
    }
