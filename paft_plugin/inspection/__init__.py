"""What deltas look like: sparsity at named thresholds."""

from __future__ import annotations
