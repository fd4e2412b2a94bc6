"""What a model came to on every single item: `items.jsonl` beside each arm's `scores.json`.

All arms answer the same items, so that their differences can be judged in pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from paft_plugin.files import read_json_lines, write_json_lines

ITEMS_FILE = "items.jsonl"
"""In `scores/<arm>/` of a run."""
SCHEMA = 1


class ItemScore(BaseModel):
    """One item of one measure, as one model answered it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    measure: str
    """The measure's name."""
    item: str
    """Which item it is: a fingerprint of its content, the same for every arm."""
    value: float
    """What counts, of the measure's mean; 0 and 1 for wrong and right. One that is not finite leaves the measure out."""
    source: str | None = None
    """What items share that are not independent of each other: a document, a data file."""
    probability: float | None = None
    """How sure the model was of its answer, among those that it could choose from: for a calibration error."""
    answer: str | None = None
    """What the model said, where texts are kept."""


def write_items(file: Path, items: Iterable[ItemScore]) -> None:
    """Write `items`, atomically."""
    write_json_lines(file, items, SCHEMA)


def read_items(file: Path) -> list[ItemScore]:
    """The items in a file.

    Raises:
        PaftError: It is missing, damaged, or of another version; names the line.
    """
    return read_json_lines(file, ItemScore, SCHEMA, "Score the arm again.")
