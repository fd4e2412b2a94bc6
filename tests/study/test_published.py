"""What is published of a study follows from the items that lie beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paft_plugin.study.page import write_study

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["demo_world", "demo_world/second", "smollm2/first_seed", "smollm2/later_seeds", "smollm2/all_seeds"]
)
def test_the_published_tables_are_made_anew_word_for_word(name: str, tmp_path: Path) -> None:
    study = shutil.copytree(STUDIES / name, tmp_path / "study")
    (study / "README.md").unlink()
    write_study(study)
    assert (study / "README.md").read_bytes() == (STUDIES / name / "README.md").read_bytes()
