"""A `paft.yml` on the demo's base model and data: nothing of it is a stand-in, only small."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.demo import configs, data
from paft_plugin.files import write_bytes
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.plan import make_plan

SEED = 7


def write_run(folder: Path, *, items: int = 10, sft_steps: int = 6, preference_steps: int = 4, **keys: Any) -> Path:
    """Write base model, data, tasks, axolotl configs and `paft.yml` into `folder`; return the `paft.yml`.

    Args:
        folder: Gets everything; the run's own folder is `folder/out`.
        items: Scored items of each measure.
        sft_steps: Optimizer steps of the SFT branch.
        preference_steps: Optimizer steps of the preference branch.
        keys: More keys of the `paft.yml`, or other values; None leaves one out.
    """
    for shipped in resources.files("paft_plugin.demo").joinpath("base").iterdir():
        write_bytes(folder / "base" / shipped.name, shipped.read_bytes())
    data.write_data(folder / "data", SEED, sft_rows=sft_steps * 8, preference_rows=preference_steps * 8, items=items)
    data.write_tasks(folder / "tasks", folder / "data" / "test")
    write_yaml(folder / "sft.yml", training("sft", sft_steps))
    write_yaml(folder / "dpo.yml", training("dpo", preference_steps))
    content: dict[str, Any] = {
        "base": "base",
        "sft": "sft.yml",
        "preference": "dpo.yml",
        "output_dir": "out",
        "fusion": {"methods": ["ties"]},
        "evaluation": {
            "tasks": "tasks",
            "measures": {"paft_skill": {"name": "skill"}},
            "skill": "skill",
            "batch_size": 64,
            "held_out": False,
        },
        **keys,
    }
    write_yaml(folder / "paft.yml", {key: value for key, value in content.items() if value is not None})
    return folder / "paft.yml"


def training(kind: configs.Training, steps: int) -> dict[str, Any]:
    """An axolotl config of the demo's, shortened, that saves a checkpoint every second step; its data path is relative."""
    effort = configs.Effort(sft_steps=steps, preference_steps=steps)
    made: dict[str, Any] = yaml.safe_load(configs.training_config(kind, effort))
    made |= {"micro_batch_size": 8, "save_steps": 2, "save_total_limit": 2, "logging_steps": 1}
    return made


def write_yaml(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def configs_of(setup: Setup) -> dict[str, dict[str, Any]]:
    """The axolotl configs that a run writes."""
    folder = setup.run_dir / "configs"
    return {
        path.stem: yaml.safe_load(text)
        for path, text in make_plan(setup).files.items()
        if path.parent == folder and path.suffix == ".yml"
    }


def edit(file: Path, **keys: Any) -> None:
    """Change keys of a YAML file; None removes one."""
    content = yaml.safe_load(file.read_text()) | keys
    write_yaml(file, {key: value for key, value in content.items() if value is not None})
