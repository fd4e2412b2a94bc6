"""Quantised models, of which no delta can be taken: how they are recognised, and which 16-bit model they are the twin of.

Never by what most of a file is stored as: packed weights count fewer entries than the embeddings beside them, which stay whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft_plugin.deltas.store import FLOATS, TensorStore
from paft_plugin.files import read_json

# What GPTQ, AWQ, bitsandbytes, FP8, compressed-tensors, HQQ, quanto and others put beside, or instead of, a weight.
COMPANION = re.compile(
    r"(?:^|[._])(?:qweight|qzeros|g_idx|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..+|SCB|weight_format"
    r"|weight_(?:packed|scales?|scale_2|global_scale|zero_point)|\w*_?scale_inv|W_q|weight\._(?:data|scale|shift)|Qidxs|codebooks)$"
)
PACKED = ("I8", "U8", "I16", "U16", "I32", "U32")
"""Whole numbers that a matrix of weights may be packed into; 64 bits are for indices."""
# Tails of hub names that say how a copy of a model is quantised (`-unsloth-bnb-4bit`, `-GPTQ-Int4`, `-FP8-dynamic`).
_HOW = r"bnb|nf4|[48]-?bits?|gptq|awq|hqq|eetq|aqlm|int[48]|fp[48]|mxfp[48]|nvfp4|w\d+a\d+|quantized"
TWIN = re.compile(
    rf"(?:[-_.](?:unsloth|dynamic|static))*(?:[-_.](?:{_HOW}))(?:[-_.](?:{_HOW}|dynamic|static|\d+g))*$", re.I
)


def quantised(store: TensorStore) -> list[str]:
    """A problem if a model is quantised, with what says so and which model to give instead."""
    config = read_json(store.folder / "config.json")
    said, packed = _said(config), next((name for name in store.names if _is_packed(store, name)), None)
    if packed is None and said is None:
        return []
    if packed is None:
        return [
            f"{store.folder}: its config.json says that it is quantised ({said}), but none of its tensors is. "
            "If it is the 16-bit model, delete quantization_config there: a merged model would be loaded by it."
        ]
    how = f"{packed} is stored as {store.dtype(packed)}"
    return [
        f"{store.folder}: a quantised model ({f'{said}; {how}' if said else how}), so no delta can be taken on it. "
        f"Give the 16-bit original{_original(store.folder, config)}."
    ]


def without_twin(name: str) -> str:
    """A model's name without the tail that says how a copy of it is quantised; the same name where it has none."""
    return TWIN.sub("", name)


def _said(config: Mapping[str, Any]) -> str | None:
    """How a config says that its model is quantised, in a few words."""
    places = (config, config.get("text_config"), config.get("language_config"))
    for place in places:
        for key in ("quantization_config", "compression_config"):
            if isinstance(place, Mapping) and isinstance(found := place.get(key), Mapping) and found:
                method = found.get("quant_method") or ("bitsandbytes" if _bits(found) else "of an unknown kind")
                return f"{method}, {_bits(found)} bits" if _bits(found) else str(method)
    return None


def _bits(quantisation: Mapping[str, Any]) -> int | None:
    if quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit"):
        return 4 if quantisation.get("load_in_4bit") else 8
    bits = quantisation.get("bits", quantisation.get("w_bit"))
    return bits if isinstance(bits, int) else None


def _is_packed(store: TensorStore, name: str) -> bool:
    """Whether a tensor holds quantised weights, or belongs to some."""
    dtype, shape = store.dtype(name), store.shape(name)
    if dtype in FLOATS:
        return bool(COMPANION.search(name))
    # Old checkpoints hold masks of attention, as a layer's `bias`.
    whole = dtype in PACKED and len(shape) > 1 and math.prod(shape) > 0 and not name.endswith("bias")
    return whole or dtype.startswith(("F8", "F6", "F4", "E8")) or bool(COMPANION.search(name))


def _original(folder: Path, config: Mapping[str, Any]) -> str:
    """The name of the model that a quantised one was made from, as far as its config or its folder's name tell."""
    cached = next((part for part in folder.resolve().parts if part.startswith("models--")), "")
    said = str(config.get("_name_or_path") or cached.removeprefix("models--").replace("--", "/") or folder.name)
    if without_twin(said) != said:
        return f", {without_twin(said)}"
    return f" (its config.json names {said})" if config.get("_name_or_path") else ""
