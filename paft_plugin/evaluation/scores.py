"""`scores.json`: what some arms scored on some measures; a run has several, and this reads them together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.measures import Measure

SCHEMA = 2
Score = dict[str, Any]
"""`scores`: measure → value; `stderr`: measure → standard error, where lm-eval has one; `n`: measure → items; `seconds`."""


def scores_content(measures: Sequence[Measure], scores: Mapping[str, Score]) -> dict[str, Any]:
    """What the file holds of each arm's score."""
    return {"schema": SCHEMA, "measures": [measure.content() for measure in measures], "scores": dict(scores)}


def read_scores(files: Iterable[Path]) -> tuple[list[Measure], dict[str, Score]]:
    """The measures that all files have in common, and each arm's score.

    Raises:
        PaftError: A file cannot be read, is of another version, or of other measures than the ones before.
    """
    measures: list[Measure] | None = None
    scores: dict[str, Score] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PaftError(f"{file}: cannot be read ({error}). Score its arms again.") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise PaftError(f"{file}: written by another version of paft-plugin. Score its arms again.")
        own = [Measure.from_content(each) for each in content["measures"]]
        if measures is not None and own != measures:
            raise PaftError(f"{file}: scored on other measures than the other arms. Score its arms again.")
        measures = own
        scores |= content["scores"]
    return measures or [], scores
