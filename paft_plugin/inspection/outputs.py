"""What an inspection leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.inspection.inspected import Inspection, write_inspection


def check_writable(folder: Path) -> None:
    """Make the folder, so that a place that cannot be written is known before anything is measured.

    Raises:
        PaftError: it is a file, or may not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".paft-inspect"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PaftError(
            f"{folder}: cannot be written ({error.strerror}). Give a folder that you may write to as --output-dir."
        ) from None


def write_outputs(inspection: Inspection, folder: Path) -> list[Path]:
    """Write `inspection.json`, whole or not at all; returns the files that were written."""
    return [write_inspection(inspection, folder)]
