"""What a branch's `paft.json` proves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paft_plugin.deltas import why_unproven

WHOLE = {"schema": 1, "finished": True, "steps_penalised": 200, "lambda": 1e-4}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no paft.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps(WHOLE | {"finished": False}), "did not end"),
        (json.dumps(WHOLE | {"steps_penalised": 0, "lambda": 0}), "no step was penalised"),
    ],
    ids=["missing", "cut off", "something else", "unfinished", "measured only"],
)
def test_what_proves_nothing_says_why(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "paft.json").write_text(content)
    assert reason in (why_unproven(tmp_path) or "")


def test_a_finished_penalised_run_is_proven(tmp_path: Path) -> None:
    (tmp_path / "paft.json").write_text(json.dumps(WHOLE))
    assert why_unproven(tmp_path) is None
