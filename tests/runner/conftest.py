"""Drivers whose runs do not outlive the test, a Ray cluster, and a run directory with a space and a plus in its path."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.ray.nodes import TwoNodes
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


@pytest.fixture(scope="module")
def head() -> Iterator[TwoNodes]:
    # Ray's sockets lie in its temporary folder, and a socket's path has at most 107 characters.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="paft-", dir="/tmp") as folder:
        patch.setenv("RAY_TMPDIR", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        nodes = TwoNodes()
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture
def nodes(head: TwoNodes) -> Iterator[TwoNodes]:
    if head.second is None:
        head.add_second()
    return head


@pytest.fixture
def ray_driver(nodes: TwoNodes, tmp_path: Path) -> Iterator[Driver]:
    folder = tmp_path / "ray driver"
    folder.mkdir()
    made = Driver(folder, nodes.address)
    yield made
    made.close()
