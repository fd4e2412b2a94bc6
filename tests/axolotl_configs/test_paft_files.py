"""Each `paft.yml` beside the configs is valid and names two branches that are what it takes them for."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.demo.configs import QUICK_DEMO
from paft_plugin.demo.run import write_inputs
from paft_plugin.pipeline.arms import resolve
from paft_plugin.pipeline.config import read_config

FILES = sorted((Path(__file__).parents[2] / "axolotl_configs").glob("*/paft.yml"))


def test_every_model_has_one() -> None:
    assert [file.parent.name for file in FILES] == sorted(
        file.name for file in FILES[0].parents[1].iterdir() if file.is_dir()
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_it_names_a_penalised_sft_branch_and_a_preference_branch_of_its_base(file: Path, tmp_path: Path) -> None:
    config = read_config(file)
    write_inputs(QUICK_DEMO, tmp_path)
    setup = resolve(config, file, tmp_path / "base")
    assert config.base_is_remote
    assert [arm.name for arm in setup.arms] == [
        "base",
        "sft",
        "sft-l1",
        "dpo",
        "sequential",
        "paft-ties",
        "paft-dare_ties",
    ]
    assert setup.branches["sft-l1"].penalised
    assert not setup.branches["sft"].penalised
    assert {branch.content["base_model"] for branch in setup.branches.values()} == {config.base}
    assert config.evaluation is not None
    assert len(config.evaluation.measures) == 6
