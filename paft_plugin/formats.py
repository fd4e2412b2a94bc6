"""How a sparsity threshold is written, so that every file and metric names it the same way."""

from __future__ import annotations


def threshold_key(threshold: float) -> str:
    """As a JSON key: the shortest text that reads back as the same number (`1e-05`, `2.5e-05`, `0.001`)."""
    return repr(float(threshold))


def threshold_label(threshold: float) -> str:
    """As part of a metric's name (`1e-5`, `2.5e-5`, `0.001`)."""
    return f"{threshold:g}".replace("e-0", "e-")
