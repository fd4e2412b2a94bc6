"""A small study on the demo's world, without rows: nothing is trained on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.demo.study import QUICK_STUDY, write_study
from tests.study.room import Change


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo's quick study, with hardly any rows."""
    folder = tmp_path_factory.mktemp("world of a study")
    write_study(replace(QUICK_STUDY, sft_rows=4, preference_rows=4, skill_items=8, items=8), folder)
    return folder


@pytest.fixture
def study(world: Path, tmp_path: Path) -> Change:
    """`study(key=value, …)`: the file of that study with other keys; None removes one."""

    def write(**changes: Any) -> Path:
        content = yaml.safe_load((world / "study.yml").read_text(encoding="utf-8")) | {
            "output_dir": str(tmp_path / "out")
        }
        content = {key: value for key, value in (content | changes).items() if value is not None}
        file = world / f"study-{tmp_path.name}.yml"
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return file

    return write
