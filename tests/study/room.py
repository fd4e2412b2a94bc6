"""What the tests of studies share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Change = Callable[..., Path]
"""Writes a study with some keys changed."""
