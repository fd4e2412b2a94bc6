"""What training, merging, inspecting and a whole run cost: `python -m paft_plugin.benchmarks NAME`."""

from __future__ import annotations
