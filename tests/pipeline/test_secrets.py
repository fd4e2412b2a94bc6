"""Secrets that somebody typed into a config: named, kept out of what is written where that can be, and still handed over."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from paft_plugin.errors import Findings
from paft_plugin.pipeline.plan import make_plan
from paft_plugin.pipeline.preflight.check import check_secrets
from paft_plugin.pipeline.preflight.data_files import remote_data
from paft_plugin.pipeline.run import variables, write_files
from paft_plugin.pipeline.secrets import find_secrets
from tests.pipeline.room import Room

URL = "https://me:hunter2@example.org/rows.jsonl"
HANDED = [
    ({"comet_api_key": "hunter2"}, "COMET_API_KEY", "hunter2"),
    ({"hub_token": "hunter2"}, "HF_TOKEN", "hunter2"),
    ({"wandb_api_key": "hunter2"}, "WANDB_API_KEY", "hunter2"),
    (
        {"mlflow_tracking_uri": "https://me:hunter2@example.org"},
        "MLFLOW_TRACKING_URI",
        "https://me:hunter2@example.org",
    ),
]


@pytest.mark.parametrize(("keys", "variable", "value"), HANDED)
@pytest.mark.parametrize("branch", ["sft", "preference"])
def test_what_a_variable_says_goes_through_the_environment(
    room: Room, keys: Any, variable: str, value: str, branch: Any
) -> None:
    setup = room.setup(**{branch: keys})
    plan = make_plan(setup)
    assert "hunter2" not in "".join(plan.files.values())
    assert "hunter2" not in repr(setup)
    assert variables(setup)[variable] == value
    write_files(setup, plan)
    assert stat.S_IMODE(setup.run_dir.stat().st_mode) == 0o700
    found = [warning for each in setup.trainings for warning in check_secrets(each).warnings]
    assert any(variable in warning for warning in found)
    assert "hunter2" not in "".join(found)


def test_what_axolotl_needs_in_its_config_stays_in_a_private_folder(room: Room) -> None:
    setup = room.setup(sft={"datasets": [{"path": URL, "type": "chat_template"}]})
    sft = setup.branches["sft-l1"]
    plan = make_plan(setup)
    assert any(URL in text for text in plan.files.values())
    write_files(setup, plan)
    assert stat.S_IMODE(setup.run_dir.stat().st_mode) == 0o700
    found = Findings()
    found.take(check_secrets(sft))
    found.take(remote_data(sft))
    assert any("datasets[0].path: a secret" in warning for warning in found.warnings)
    assert any("https://***@example.org/rows.jsonl is not looked at" in warning for warning in found.warnings)
    assert "hunter2" not in "".join(found.warnings + found.problems)


def test_a_run_without_secrets_can_be_shared(room: Room) -> None:
    setup = room.setup(sft={"special_tokens": {"pad_token": "<pad>"}, "mlflow_tracking_uri": "http://localhost:5000"})
    assert list(find_secrets(setup.branches["sft-l1"].content)) == []
    write_files(setup, make_plan(setup))
    assert stat.S_IMODE(setup.run_dir.stat().st_mode) & 0o055
