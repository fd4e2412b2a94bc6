"""Which layer a tensor belongs to, and what kind of module it is, by its name."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# Containers that hold a whole decoder and say nothing of the module within.
_CONTAINERS = ("base_model.", "language_model.", "model.", "transformer.", "gpt_neox.", "decoder.")


def place_of(name: str) -> tuple[int | None, str]:
    """Layer (None outside of the layers) and kind of module.

    `model.layers.3.self_attn.q_proj.weight` → 3, `self_attn.q_proj`; `model.layers.0.mlp.experts.7.up_proj.weight` → 0,
    `mlp.experts.*.up_proj`; `model.embed_tokens.weight` → None, `embed_tokens`.
    """
    kind = name.removesuffix(".weight")
    found = _LAYER.search(kind)
    if found is not None and found.end() < len(kind):
        return int(found[1]), _NUMBER.sub("*", kind[found.end() :])
    changed = True
    while changed:
        stripped = next((kind.removeprefix(each) for each in _CONTAINERS if kind.startswith(each)), kind)
        changed, kind = stripped != kind, stripped
    return None, kind
