"""`configs/run.json`: written and read back, and of the last version read as if it were of this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import RUN_FILE, Arm, RunFile, Step, read_run
from paft_plugin.files import write_json

ARMS = (
    Arm(name="base", kind="base", model="/models/base"),
    Arm(name="sft", kind="branch", role="sft", branches=("sft",), model="branches/sft"),
    Arm(
        name="sft-l1",
        kind="branch",
        role="sft",
        penalised=True,
        branches=("sft-l1",),
        twin="sft",
        model="branches/sft-l1",
    ),
    Arm(name="orpo", kind="branch", role="preference", branches=("orpo",), model="branches/orpo"),
    Arm(name="sequential", kind="sequential", branches=("sft",), model="models/sequential"),
    Arm(
        name="parallel-dare_ties",
        kind="fused",
        branches=("sft", "orpo"),
        recipe="dare_ties",
        model="models/parallel-dare_ties",
    ),
    Arm(
        name="paft-my-own",
        kind="fused",
        penalised=True,
        branches=("sft-l1", "orpo"),
        recipe="my-own",
        twin="parallel-my-own",
        model="models/paft-my-own",
    ),
)
RUN = RunFile(
    description="Why.",
    base="org/base",
    skills=("sums",),
    thresholds=(1e-5,),
    arms=ARMS,
    stages=(Step(name="sft", title="train sft", command=("axolotl", "train", "a b.yml")),),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    RUN.write(tmp_path / RUN_FILE)
    assert read_run(tmp_path) == RUN
    assert RUN.stages[0].line == "axolotl train 'a b.yml'"


def test_one_of_the_last_version_says_the_same(tmp_path: Path) -> None:
    content = {
        "schema": 1,
        "description": "Why.",
        "base": "org/base",
        "branches": ["sft", "sft-l1", "orpo"],
        "skill": "sums",
        "preference": None,
        "thresholds": [1e-5],
        "arms": {arm.name: arm.model for arm in ARMS},
        "fused": {"parallel-dare_ties": ["sft", "orpo"], "paft-my-own": ["sft-l1", "orpo"]},
        "stages": [{"name": "sft", "title": "train sft", "command": ["axolotl", "train", "a b.yml"]}],
    }
    write_json(tmp_path / RUN_FILE, content)
    assert read_run(tmp_path) == RUN


@pytest.mark.parametrize("content", [{"schema": 1, "arms": ["sft"]}, {"schema": 1, "fused": [], "arms": {"a": "b"}}])
def test_a_damaged_one_of_the_last_version_is_one_clear_message(content: dict, tmp_path: Path) -> None:
    write_json(tmp_path / RUN_FILE, content)
    with pytest.raises(PaftError, match=r"run\.json: damaged"):
        read_run(tmp_path)
