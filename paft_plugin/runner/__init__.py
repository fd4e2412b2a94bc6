"""Restartable stages, each a command in a process of its own: order, markers, lock, scheduler, executors. Knows no PAFT."""

from __future__ import annotations
