"""What deltas look like and how they interfere: measures, plots, and the diagnosis of what goes wrong."""

from __future__ import annotations
