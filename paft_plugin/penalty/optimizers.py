"""Optimizers that the penalty comes too late for: those that take their steps within backward."""

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
