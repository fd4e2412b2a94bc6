"""Recipes of two deltas for mergekit, what is wrong with them, and the models or adapters that they come to."""

from __future__ import annotations
