"""Deltas on disk: open (base, adapter or model) lazily, fingerprint them, check that they belong together.

The names below are imported when they are first used: torch takes seconds, and findings and tokenizers do without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft_plugin.deltas.belongs import check_belongs, check_finite, examine
    from paft_plugin.deltas.delta import Delta, open_delta
    from paft_plugin.deltas.proof import why_unproven

__all__ = ["Delta", "check_belongs", "check_finite", "examine", "open_delta", "why_unproven"]

_PLACES = {
    "belongs": ("check_belongs", "check_finite", "examine"),
    "delta": ("Delta", "open_delta"),
    "proof": ("why_unproven",),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"paft_plugin.deltas.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
