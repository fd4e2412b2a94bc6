"""A first `paft.yml` and its two axolotl configs, for a base model and two data sets; every choice says why."""

from __future__ import annotations

from paft_plugin.pipeline.starter.write import TrainedBranch, Wish, write_starter

__all__ = ["TrainedBranch", "Wish", "write_starter"]
