"""What is published of a study follows from the items that lie beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paft_plugin.study.page import write_study

FOLDER = Path(__file__).parents[2] / "studies" / "demo_world" / "first_seed"


@pytest.mark.slow
def test_the_published_tables_are_made_anew_word_for_word(tmp_path: Path) -> None:
    study = shutil.copytree(FOLDER, tmp_path / "first_seed")
    (study / "README.md").unlink()
    write_study(study)
    assert (study / "README.md").read_bytes() == (FOLDER / "README.md").read_bytes()
