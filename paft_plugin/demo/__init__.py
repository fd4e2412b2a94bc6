"""The embedded default: a shipped small base model, its world of tasks, and the run that takes it down the whole road."""

from __future__ import annotations
