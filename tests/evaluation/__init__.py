"""Tests of scoring through lm-eval."""

from __future__ import annotations
