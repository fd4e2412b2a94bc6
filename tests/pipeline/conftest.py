"""The demo's base model, data and configs, to plant one mistake in; and a hub on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.demo import configs, data
from paft_plugin.errors import Findings
from paft_plugin.files import write_bytes
from paft_plugin.pipeline.preflight import preflight
from tests.pipeline.hub import FakeHub
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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake hub that is asked, although the tests are offline."""
    from huggingface_hub import constants

    made = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield made
    made.close()
