"""Deltas on disk: open (base, adapter or model) lazily, fingerprint them, check that they belong together."""

from __future__ import annotations
