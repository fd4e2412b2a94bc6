"""A histogram of log₁₀|δ|, for those of the trainer's loggers that take one: TensorBoard, Weights & Biases, Trackio.

Its bins are half octaves, because δ spans many powers of ten: in bins of equal width nearly all of it would lie in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from paft_plugin.penalty.tally import BINS_PER_OCTAVE, Tally, bin_edges

PER_BIN = BINS_PER_OCTAVE // 2
LOWEST = 2.0**-40  # about 1e-12: whatever is smaller shares the first bin, exact zeros included


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, N < 400 of them, so that Weights & Biases takes it (512)."""

    counts: list[int]  # [N]
    edges: list[float]  # [N + 1], log₁₀|δ|


def log_magnitudes(tally: Tally) -> Histogram | None:
    """Of all entries of δ, from the smallest to the largest; None if one of them is infinite or no number."""
    edges = bin_edges()
    first = int(torch.searchsorted(edges, LOWEST))
    counts = torch.cat([tally.bins[:first].sum()[None], tally.bins[first:].view(-1, PER_BIN).sum(1)])
    ends = torch.cat([torch.tensor([LOWEST / 2**0.5], dtype=torch.float64), edges[first::PER_BIN]]).log10()
    low, high = (int(at) for at in counts.nonzero().aminmax())
    if not ends[high + 1].isfinite():
        return None
    return Histogram(counts[low : high + 1].tolist(), ends[low : high + 2].tolist())


def log_histogram(callbacks: Sequence[TrainerCallback], name: str, histogram: Histogram, step: int) -> None:
    """Hand `histogram` to each logger among `callbacks` that takes one, under the name that its scalars would get."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_histogram_raw(f"train/{name}", **_for_tensorboard(histogram), global_step=step)
        elif isinstance(callback, WandbCallback):
            import wandb

            _log_beside_step(wandb, name, histogram, step)
        elif isinstance(callback, TrackioCallback):
            import trackio

            _log_beside_step(trackio, name, histogram, step)


def _log_beside_step(library: Any, name: str, histogram: Histogram, step: int) -> None:
    drawn = library.Histogram(np_histogram=(histogram.counts, histogram.edges))
    library.log({f"train/{name}": drawn, "train/global_step": step})


def _for_tensorboard(histogram: Histogram) -> dict[str, Any]:
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
