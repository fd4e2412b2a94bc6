"""Recipes for mergekit: which methods, with which parameters, from which branches."""

from __future__ import annotations
