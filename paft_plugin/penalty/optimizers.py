"""Optimizers that the penalty can't work with, by name: axolotl's `optimizer`, transformers' `optim`."""

from __future__ import annotations


def why_not_optimizer(setting: str, name: str) -> list[str]:
    """A problem if the optimizer of this name consumes gradients during backward.

    Args:
        setting: what the user calls it by: `optimizer` in an axolotl config, `optim` in transformers' TrainingArguments.
        name: as both spell it: `lomo`, `galore_adamw_layerwise` …
    """
    plain = name.lower()
    if "lomo" not in plain and not plain.endswith("layerwise"):
        return []
    return [
        f"{setting}: {name}: it consumes gradients during backward, before the penalty's can be added: use another one, "
        "such as adamw_torch"
    ]


def why_not_proximal(setting: str, name: str) -> list[str]:
    """A problem if soft-thresholding the parameters after a step of this optimizer would not last; arguments as above."""
    if not name.lower().startswith("schedule_free"):
        return []
    return [
        f"{setting}: {name}: it averages weights of its own, which paft_l1_mode: proximal does not reach: use another one, "
        "such as adamw_torch, or paft_l1_mode: subgradient"
    ]
