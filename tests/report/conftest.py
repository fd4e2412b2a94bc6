"""A factory of small run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.runs import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` into a new folder; keyword arguments replace or (None) leave out parts."""

    def make(**parts: object) -> Path:
        return write_run(tmp_path / "run", **parts)  # type: ignore[arg-type]

    return make
