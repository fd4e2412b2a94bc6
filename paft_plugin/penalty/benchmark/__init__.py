"""What the penalty costs in time and memory: `python -m paft_plugin.penalty.benchmark`."""

from __future__ import annotations
