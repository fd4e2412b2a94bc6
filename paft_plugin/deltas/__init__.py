"""Deltas on disk: open (base, adapter or model) lazily, fingerprint them, check that they belong together."""

from __future__ import annotations

from paft_plugin.deltas.belongs import check_belongs, check_finite, examine
from paft_plugin.deltas.delta import Delta, open_delta
from paft_plugin.deltas.findings import Findings
from paft_plugin.deltas.proof import why_unproven

__all__ = ["Delta", "Findings", "check_belongs", "check_finite", "examine", "open_delta", "why_unproven"]
