"""A Ray cluster as a place where stages run."""

from __future__ import annotations
