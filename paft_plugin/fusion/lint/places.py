"""Whether a path in a recipe is a folder here, or a name on the hub; as mergekit would take it."""

from __future__ import annotations

from pathlib import Path


def exists(text: str) -> bool:
    """Whether something of this name is on this disk; a text that can be no path is not."""
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False


def looks_local(text: str) -> bool:
    """Whether a text can only be a folder: `org/name` and `name` may also be on the hub."""
    return text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text
