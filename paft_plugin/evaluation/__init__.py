"""Scores through lm-evaluation-harness."""

from __future__ import annotations
