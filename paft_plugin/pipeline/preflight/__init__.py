"""What would fail hours later, found before anything starts: all of it at once."""

from __future__ import annotations

from paft_plugin.pipeline.preflight.check import preflight

__all__ = ["preflight"]
