"""The plugin in a process that reads several configs, as a sweep does: it acts on those that name it, once, and on no other."""

from __future__ import annotations

import builtins
import importlib.metadata
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import paft_plugin
from paft_plugin.errors import PaftError
from tests.offered import KEYS, NEW_LINE

NAME, OTHER_NAME = "paft_plugin.PAFTPlugin", "paft_plugin.plugin.PAFTPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"
SFT = {
    "base_model": "some/base",
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "learning_rate": 1e-4,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "bf16": False,
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
}
DPO = {**SFT, "rl": "dpo", "datasets": [{"path": "pairs.jsonl", "type": "chatml.intel"}]}
PENALISED = {**SFT, "plugins": [NAME], "paft_l1_lambda": 1e-4}
Read = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    """axolotl's plugin manager as a process finds it that has just started."""
    from axolotl.integrations.base import PluginManager

    monkeypatch.setattr(PluginManager, "_instance", None)
    return PluginManager.get_instance()


@pytest.fixture
def read(manager: Any) -> Read:  # noqa: ARG001 it starts from a manager that knows no plugin
    """What axolotl's `load_cfg` does with a config and its plugins."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    def validated(config: dict[str, Any]) -> dict[str, Any]:
        raw = DictDefault(config)
        prepare_plugins(raw)
        return validate_config(raw).to_dict()

    return validated


@pytest.mark.parametrize("config", [SFT, DPO, {**DPO, "plugins": [LIGER]}])
def test_a_config_that_does_not_name_it_is_read_as_if_there_were_none(read: Read, config: dict[str, Any]) -> None:
    before = read(config)
    assert read(PENALISED)["paft_l1_lambda"] == 1e-4
    assert read(config) == before
    read(before)  # as a worker of Ray reads it again
    assert not [key for key in before if key.startswith("paft_")]
    assert read(PENALISED) == read(PENALISED)


def test_its_hooks_leave_such_a_run_alone(read: Read, manager: Any) -> None:
    read(PENALISED)
    state = torch.get_rng_state()
    for config in (SFT, DPO, {**DPO, "plugins": []}):
        cfg = SimpleNamespace(get=config.get)  # whatever else is asked of it, or of the trainer, raises
        manager.plugins[NAME].register(config)
        manager.plugins[NAME].post_trainer_create(cfg, object())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("config", [SFT, DPO])
def test_keys_without_the_plugin_are_refused_where_it_is_known(read: Read, config: dict[str, Any]) -> None:
    read(PENALISED)
    with pytest.raises(ValidationError, match=r"paft_l1_lambda: plugins does not name paft_plugin\.PAFTPlugin here"):
        read({**config, "plugins": [LIGER], "paft_l1_lambda": 1e-4})  # axolotl 0.19 asks no plugin where none is named
    with pytest.raises(ValidationError, match="rl: grpo: the penalty belongs to the SFT branch"):
        read({**DPO, "rl": "grpo", "plugins": [NAME], "paft_l1_lambda": 1e-4})
    assert read({**DPO, "plugins": [NAME], "paft_l1_lambda": 1e-4})["paft_l1_lambda"] == 1e-4


@pytest.mark.parametrize(
    "names",
    [
        [NAME, NAME],
        [NAME, OTHER_NAME],
        [OTHER_NAME, NAME],
        pytest.param(
            [NAME, "paft_plugin:PAFTPlugin"],
            marks=pytest.mark.skipif(not NEW_LINE, reason="axolotl 0.19 knows no names with a colon"),
        ),
    ],
    ids=str,
)
def test_named_twice_it_acts_once(read: Read, manager: Any, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.utils.dict import DictDefault

    installed: list[Any] = []
    monkeypatch.setattr(
        "paft_plugin.plugin.PenaltyInjector",
        lambda trainer, _: SimpleNamespace(install=lambda: installed.append(trainer)),
    )
    cfg = DictDefault(read({**PENALISED, "plugins": names}))
    manager.post_trainer_create(cfg, "trainer")
    assert installed == ["trainer"]


@pytest.mark.parametrize("installed", ["0.18.2", "0.22.0", "0.22.0.dev0", "1.0"])
def test_an_unsupported_axolotl_is_named_and_stops_the_run(
    installed: str, manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether axolotl loads it as 0.19 does, which swallows ImportErrors, or as 0.20."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed if name == "axolotl" else real(name))
    required = {"required": True} if NEW_LINE else {}
    with pytest.raises(PaftError, match=rf"works with axolotl>=.*, and this is axolotl {installed}: install") as error:
        manager.register(NAME, **required)
    assert len(error.value.problems) == 1


def test_what_cannot_be_imported_stops_the_run(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_plugin(name: str, *args: Any, **settings: Any) -> Any:
        if name == "paft_plugin.plugin":
            raise ImportError("no module named peft")
        return real(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without_plugin)
    monkeypatch.delitem(sys.modules, "paft_plugin.plugin", raising=False)
    with pytest.raises(PaftError, match="cannot be imported with what is installed here: no module named peft"):
        manager.register(NAME, **({"required": True} if NEW_LINE else {}))


def test_it_says_the_versions_that_it_can_be_installed_with() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"axolotl{paft_plugin.AXOLOTL}" in project["dependencies"]
    assert "axolotl.plugins" not in project["entry-points"]  # the plugin's docstring says why


def test_no_key_of_axolotl_went_unread() -> None:
    """One that a later version has fails here, until somebody has read what it does to δ."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert set(AxolotlInputConfig.model_fields) == KEYS
