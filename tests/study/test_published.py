"""What is published of a study follows from the items that lie beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paft_plugin.study.page import write_study

STUDIES = Path(__file__).parents[2] / "studies"
PUBLISHED = sorted(str(file.parent.relative_to(STUDIES)) for file in STUDIES.rglob("design.json"))


def test_there_are_published_studies() -> None:
    assert {"demo_world", "demo_world/twins/qwen3", "smollm2/all_seeds"} <= set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_tables_are_made_anew_word_for_word(name: str, tmp_path: Path) -> None:
    study = shutil.copytree(STUDIES / name, tmp_path / "study")
    (study / "README.md").unlink()
    write_study(study)
    assert (study / "README.md").read_bytes() == (STUDIES / name / "README.md").read_bytes()
