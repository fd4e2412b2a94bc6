"""A driver whose runs do not outlive the test, and a run directory with a space and a plus in its path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.tools import Driver


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    folder = tmp_path / "driver"
    folder.mkdir()
    made = Driver(folder)
    yield made
    made.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "a run + more"
