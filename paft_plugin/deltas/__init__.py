"""Deltas on disk: open (base, adapter or model) lazily, fingerprint them, check that they belong together."""

from __future__ import annotations

from paft_plugin.deltas.belongs import check_belongs, check_finite
from paft_plugin.deltas.delta import Delta, open_delta

__all__ = ["Delta", "check_belongs", "check_finite", "open_delta"]
