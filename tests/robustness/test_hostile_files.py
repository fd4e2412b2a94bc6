"""Whatever a file holds, what reads it ends soon, with an exit code that is documented and a sentence, and writes nowhere else.

`PAFT_HOSTILE_INPUTS` sets how many inputs the slow test tries in all.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from paft_plugin.errors import printable

from .mutants import variants
from .world import READERS, Outcome, make_world

FAST, SLOW = 500, int(os.environ.get("PAFT_HOSTILE_INPUTS", "10000"))
SHARES = {
    "plan": 20,
    "recipe": 12,
    "branches": 16,
    "init": 14,
    "diagnose": 6,
    "status": 12,
    "cards": 12,
    "marker": 4,
    "merge": 4,
}
"""Percent of the inputs that each reader is given."""
PATIENCE = 10.0
MOST_MEMORY = 500 << 10  # KiB, as getrusage counts on Linux
WRITTEN = ("started", "diagnosis.json", "status.json", "run", "merged")
"""What the commands may write, in the folder of the models."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("hostile") / "world")


def outside(root: Path) -> set[Path]:
    """All that lies around what the commands may write, but for the mutated files themselves."""
    own = {root / name for name in WRITTEN}
    return {path for path in root.parent.rglob("*") if not own & {path, *path.parents}}


def finite(value: Any) -> bool:
    """Whether no number in a JSON document is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, list) else not isinstance(value, float) or math.isfinite(value)


def check(root: Path, read: Callable[[Path], Outcome], name: str, content: bytes) -> None:
    """Give a reader one input; the file is as it was afterwards."""
    file = root / name
    original = file.read_bytes()
    kept = {path: path.read_bytes() for path in (root / "run").rglob("*") if path.is_file()} if "run/" in name else {}
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.write_bytes(content)
    try:
        outcome = read(root)
    finally:
        file.write_bytes(original)
        for path, held in kept.items():
            path.write_bytes(held)
    assert outcome.code in (0, 2, 3)
    assert outcome.code != 2 or outcome.said.strip()
    assert printable(outcome.said) == outcome.said
    assert "Traceback" not in outcome.said
    assert time.process_time() - began < PATIENCE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_MEMORY
    for written in ("diagnosis.json", "status.json"):
        if (root / written).exists():
            assert finite(json.loads((root / written).read_text()))
            (root / written).unlink()


def hold(root: Path, reader: str, count: int) -> None:
    """Try `count` inputs on a reader."""
    read, names = READERS[reader]
    inputs = st.one_of(
        [variants(name, (root / name).read_bytes()).map(lambda text, name=name: (name, text)) for name in names]
    )
    read(root)
    before = outside(root)

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def try_one(one: tuple[str, bytes]) -> None:
        check(root, read, *one)

    try_one()
    assert outside(root) == before


@pytest.mark.parametrize("reader", READERS)
def test_hostile_files_end_in_a_sentence(reader: str, root: Path) -> None:
    assert READERS[reader][0](root).code in (0, 3)
    hold(root, reader, FAST * SHARES[reader] // 100)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_ten_thousand_hostile_files_end_in_a_sentence(reader: str, root: Path) -> None:
    hold(root, reader, SLOW * SHARES[reader] // 100)
