"""What people read in the end: the page of a run, its README, its model cards."""

from __future__ import annotations
