"""Adapters that an earlier PEFT saved still merge to the tensors that they merged to then, by us and by the installed PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fusion.merge.golden import BRANCHES, FOLDER, METHODS, expected, merged_by_peft, merged_by_us
from tests.fusion.merge.tools import assert_same


@pytest.mark.parametrize("method", METHODS)
def test_a_fused_model_is_what_it_was(method: str, tmp_path: Path) -> None:
    assert_same(merged_by_us(method, tmp_path), expected(method))


@pytest.mark.parametrize("name", BRANCHES)
def test_peft_loads_it_as_it_did(name: str) -> None:
    assert json.loads((FOLDER / name / "adapter_config.json").read_text())["peft_version"].startswith("0.20.")
    assert_same(merged_by_peft(name), expected(name))
