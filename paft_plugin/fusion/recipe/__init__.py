"""Recipes for mergekit: which methods, with which settings, from which branches, as YAML with its reasons."""

from __future__ import annotations
