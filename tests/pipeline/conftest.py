"""The demo's base model, data and configs, to plant one mistake in."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.demo import configs, data
from paft_plugin.errors import Findings
from paft_plugin.files import write_bytes
from paft_plugin.pipeline.preflight import preflight
from tests.pipeline.room import Room


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `data` and `axolotl`."""
    folder = tmp_path_factory.mktemp("a demo + its data")
    for shipped in resources.files("paft_plugin.demo").joinpath("base").iterdir():
        write_bytes(folder / "base" / shipped.name, shipped.read_bytes())
    data.write_data(folder / "data", 42, sft_rows=96, preference_rows=96, items=8)
    configs.write_configs(folder, configs.QUICK)
    return folder


@pytest.fixture
def room(tmp_path: Path, demo: Path) -> Room:
    return Room(tmp_path, demo)


@pytest.fixture
def check(room: Room, forked: None) -> Callable[..., Findings]:  # noqa: ARG001
    """`check(sft={…}, preference={…}, rl=…, **paft)`: the preflight of the demo with these changes."""

    def run(**changes: Any) -> Findings:
        return preflight(room.setup(**changes))

    return run
