"""Finds what is wrong, or not as it seems, in a mergekit recipe, ours or a stranger's, before it is run."""

from __future__ import annotations

from pathlib import Path

from paft_plugin.fusion.lint.findings import Finding, errors

__all__ = ["Finding", "errors", "lint_recipe"]


def lint_recipe(path: Path, *, read_weights: bool = True) -> list[Finding]:
    """Look for everything that is wrong, or not as it seems, in a mergekit recipe and in what it names.

    Args:
        path: The recipe; any mergekit YAML.
        read_weights: Whether to read the branches' weights, tensor by tensor, for what the method makes of them.

    Returns:
        Findings in the order of the file. One step is taken where the last is sound: structure, parameters, then weights.
    """
    from paft_plugin.fusion.lint.registry import look

    return look(path, read_weights)
