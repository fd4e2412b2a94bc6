"""Runs the demo: writes its base model, data, tasks, configs and `paft.yml`, and leaves the rest to the pipeline."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rich.console import Console

from paft_plugin.demo import data
from paft_plugin.demo.configs import SEED, TASKS, VALIDATION_TASKS, Demo, paft_yml, write_configs
from paft_plugin.files import write_bytes, write_text
from paft_plugin.pipeline.run import run_pipeline


def run_demo(demo: Demo, output_dir: Path, console: Console) -> None:
    """Run a demo in `output_dir`; what an earlier run there finished with the same inputs is kept.

    Raises:
        PaftError: naming the stage that failed, with the end of its log.
        KeyboardInterrupt: after Ctrl-C, once no process of the run is left.
    """
    run_dir = output_dir.resolve()
    write_inputs(demo, run_dir)
    run_pipeline(run_dir / "paft.yml", console)


def write_inputs(demo: Demo, run_dir: Path) -> None:
    """Write what a run is given: base model, data, lm-eval tasks, axolotl configs, `paft.yml`."""
    for shipped in resources.files("paft_plugin.demo").joinpath("base").iterdir():
        write_bytes(run_dir / "base" / shipped.name, shipped.read_bytes())
    data.write_data(run_dir / "data", SEED, items=demo.items)
    data.write_tasks(run_dir / TASKS, run_dir / "data" / "test")
    data.write_tasks(run_dir / VALIDATION_TASKS, run_dir / "data" / "validation", "validation")
    write_configs(run_dir, demo.effort)
    write_text(run_dir / "paft.yml", paft_yml(demo))
