"""What the stages of a run are given: axolotl configs as resolved, recipes, measures. Texts, written before any stage starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import yaml

from paft_plugin.errors import PaftError
from paft_plugin.files import write_text
from paft_plugin.pipeline.branches import config_text
from paft_plugin.pipeline.plan import (
    MEASURES_FILE,
    REPORT,
    RUN_FILE,
    config_file,
    readable,
    recipe_file,
    sequential_base,
    whole_recipe,
)
from paft_plugin.pipeline.setup import DENSE, SEQUENTIAL, WHOLE, Setup
from paft_plugin.pipeline.stages import Stage


def given_files(setup: Setup, stages: list[Stage]) -> dict[Path, str]:
    """Absolute path → text of every file that the run itself writes for its stages.

    Raises:
        PaftError: A recipe of the user's cannot be read, or has a $placeholder that means nothing.
    """
    run_dir = setup.run_dir
    files = {
        config_file(run_dir, name): config_text(setup.branches[name], str(setup.base), name, run_dir)
        for name in setup.needed
        if setup.branches[name].trained is None
    }
    files |= _sequential(setup)
    for arm in setup.fused:
        source = setup.config.fusion.recipes.get(arm.partition("-")[2])
        if source is not None:
            files[recipe_file(setup, arm)] = _filled(setup, arm, source)
    if setup.config.evaluation is not None:
        content = setup.config.evaluation.model_dump(mode="json")
        files[run_dir / MEASURES_FILE] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return {**files, run_dir / RUN_FILE: _run_content(setup, stages)}


def write_files(files: dict[Path, str]) -> None:
    """Write what is not there already, so that a file that stays the same stays as old as it is."""
    for file, text in files.items():
        if not file.is_file() or file.read_bytes() != text.encode("utf-8"):
            write_text(file, text)


def _sequential(setup: Setup) -> dict[Path, str]:
    if SEQUENTIAL not in setup.arms:
        return {}
    preference, base = setup.branches[setup.preference], sequential_base(setup)
    files = {
        config_file(setup.run_dir, SEQUENTIAL): config_text(preference, str(base), SEQUENTIAL, setup.run_dir),
    }
    if setup.branches[DENSE].is_adapter:
        files[whole_recipe(setup, WHOLE)] = _whole(setup.base, setup.branch_folder(DENSE))
    if preference.is_adapter:
        files[whole_recipe(setup, SEQUENTIAL)] = _whole(base, setup.run_dir / "branches" / SEQUENTIAL)
    return files


def _whole(base: Path, adapter: Path) -> str:
    """The recipe that folds an adapter into its base: in fp32, since base + s·BA would be rounded twice otherwise."""
    model = {"model": {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}, "parameters": {"weight": 1.0}}
    recipe = {"merge_method": "linear", "models": [model], "dtype": "float32", "out_dtype": _dtype(base)}
    return (
        f"# {adapter.name} as a whole model.\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)}"
    )


def _dtype(base: Path) -> str:
    """The dtype that a model's config names, the one that its weights are saved in; fp32 if it names none."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "float32"  # a model that is still to be made has the base's, and a broken one is preflight's to name
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _filled(setup: Setup, arm: str, source: Path) -> str:
    sft, preference = (str(setup.branch_folder(name)) for name in setup.sources(arm))
    try:
        return Template(source.read_text(encoding="utf-8")).substitute(base=setup.base, sft=sft, preference=preference)
    except (OSError, UnicodeDecodeError) as error:
        raise PaftError(f"{source}: cannot be read ({error}).") from None
    except (KeyError, ValueError) as error:
        raise PaftError(
            f"{source}: a $placeholder of it means nothing here ({error}). There are $base, $sft and $preference; "
            "write $$ for a plain $."
        ) from None


def _run_content(setup: Setup, stages: Sequence[Stage]) -> str:
    """What `run.json` says for the report: the arms, and the commands that repeat them (but the report's own)."""
    run_dir = setup.run_dir
    evaluation = setup.config.evaluation
    content = {
        "schema": 1,
        "description": setup.config.description,
        "base": setup.config.base,
        "branches": list(setup.branches),
        "skill": evaluation.skill if evaluation else None,
        "preference": evaluation.preference if evaluation else None,
        "thresholds": setup.config.inspection.thresholds,
        "arms": {arm: str(setup.model(arm)).removeprefix(f"{run_dir}/") for arm in setup.arms},
        "fused": {arm: setup.sources(arm) for arm in setup.fused},
        "stages": [
            {"name": stage.name, "title": stage.title, "command": readable(stage.command, run_dir)}
            for stage in stages
            if stage.name != REPORT
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
