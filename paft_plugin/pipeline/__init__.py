"""Stages with markers, run as real commands in processes of their own."""

from __future__ import annotations
