"""`axolotl paft run`: from a `paft.yml` to the report, or, with `--dry-run`, to what would happen and why."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paft_plugin import __version__
from paft_plugin.errors import Findings, raise_if_any
from paft_plugin.evaluation.arms import read_run
from paft_plugin.pipeline.arms import Setup, open_setup
from paft_plugin.pipeline.config import ExecutorConfig
from paft_plugin.pipeline.estimate.disk import free_bytes, needed_bytes
from paft_plugin.pipeline.plan import SCORES, Plan, make_plan, readable
from paft_plugin.pipeline.preflight import preflight
from paft_plugin.pipeline.secrets import find_secrets
from paft_plugin.pipeline.stage_logs import STAGE_LOGS
from paft_plugin.runner.devices import choose_devices, find_devices
from paft_plugin.runner.executor import Executor
from paft_plugin.runner.identity import identities
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.logs import size
from paft_plugin.runner.markers import outdated
from paft_plugin.runner.scheduler import StagesFailedError, run_stages
from paft_plugin.runner.stages import in_order
from paft_plugin.runner.watch.display import Display
from paft_plugin.runner.watch.events import EventLog


def run_pipeline(file: Path, console: Console, *, arms: Sequence[str] = (), sequential: bool = False) -> Setup:
    """Run everything that `file`, a `paft.yml`, wants and that is not up to date; `arms` and `sequential` as in `open_setup`.

    Raises:
        PaftError: All that is wrong with the file and what it names; a stage that failed, with the end of its log.
        KeyboardInterrupt: After Ctrl-C, once no process of the run is left.
    """
    setup = open_setup(file, arms, sequential, download=True)
    plan = make_plan(setup)
    say(look_ahead(setup, plan), console)
    executor = make_executor(setup.config.executor)
    try:
        run_stages(
            plan.stages,
            setup.run_dir,
            executor,
            [Display(setup.run_dir, console, STAGE_LOGS), EventLog(setup.run_dir, __version__, STAGE_LOGS)],
            prepare=partial(write_files, setup, plan),
            variables=variables(setup),
            reader=STAGE_LOGS,
        )
    except StagesFailedError:
        show_rest(setup, plan, console)
        raise
    show_results(setup.run_dir, console)
    return setup


def prepare(file: Path, arms: Sequence[str] = (), sequential: bool = False) -> Setup:
    """Write what a run's trainings and fusions are given (axolotl configs, recipes), and run none of them.

    Nothing is scored, so no rows are held out: whoever trains by hand trains on all of them.

    Raises:
        PaftError: All that is wrong with the file and what it names.
    """
    setup = open_setup(file, arms, sequential)
    setup = replace(setup, config=setup.config.model_copy(update={"evaluation": None}))
    write_files(setup, make_plan(setup))
    return setup


def write_files(setup: Setup, plan: Plan) -> None:
    """Write what the stages are given; where a config holds a secret, into a folder that is for its owner alone."""
    if any(branch.secrets or any(find_secrets(branch.content)) for branch in setup.trainings):
        setup.run_dir.mkdir(parents=True, exist_ok=True)
        setup.run_dir.chmod(0o700)
    plan.write_files()


def show_plan(file: Path, console: Console, *, arms: Sequence[str] = (), sequential: bool = False) -> None:
    """Print the stages of a run, which of them would run and why, the exact commands, and what preflight finds; writes nothing.

    Raises:
        PaftError: All that is wrong with the file and what it names.
    """
    setup = open_setup(file, arms, sequential, download=False)
    plan = make_plan(setup)
    reasons = why_run(setup, plan)
    table = table_of("Stage", "What", "Why it runs")
    for stage in plan.stages:
        why = Text(reasons[stage.name]) if stage.name in reasons else Text("up to date", style="green")
        table.add_row(Text(stage.name), Text(stage.title), why)
    console.print(Text(f"The run in {setup.run_dir}", style="bold"), soft_wrap=True)
    console.print(table)
    disk = f"A whole run writes about {size(needed_bytes(setup))}; {size(free_bytes(setup.run_dir))} are free."
    console.print(disk, soft_wrap=True, highlight=False)
    console.print(f"cd {shlex.quote(str(setup.run_dir))}", soft_wrap=True, highlight=False, markup=False)
    for stage in plan.stages:
        if stage.name in reasons:
            command = shlex.join(readable(stage.command, setup.run_dir))
            console.print(f"# {stage.title}\n{command}", soft_wrap=True, highlight=False, markup=False)
    say(look_ahead(setup, plan), console)


def table_of(*headings: str) -> Table:
    """An empty table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def why_run(setup: Setup, plan: Plan) -> dict[str, str]:
    """The stages that a run would start now, each with the reason in a few words."""
    ordered = in_order(plan.stages, setup.run_dir)
    return outdated(ordered, setup.run_dir, identities(ordered, setup.run_dir, plan.files))


def look_ahead(setup: Setup, plan: Plan) -> Findings:
    """Preflight: what would fail hours later, and what will surprise. Nothing to run, nothing to find."""
    if not why_run(setup, plan):
        return Findings()
    findings = preflight(setup)
    findings.warn(*(note for branch in setup.needed for note in branch.notes))
    return findings


def say(findings: Findings, console: Console) -> None:
    """Print what will surprise; raises `PaftError` with all that is wrong."""
    raise_if_any(findings.problems)
    for warning in findings.warnings:
        warn(console, warning)


def show_results(run_dir: Path, console: Console) -> None:
    """What measured nothing, the table of all arms and of what each branch lost, the arm to use, and where to read on."""
    from paft_plugin.report.arm_tables import arm_table, tax_table
    from paft_plugin.report.choice import choose
    from paft_plugin.report.collect import collect
    from paft_plugin.report.differences import silent_measures
    from paft_plugin.report.run_report import REPORT, missed_targets

    run = read_run(run_dir)
    assert run is not None, "the run itself wrote it"
    results = collect(run_dir, run)
    choice = choose(results)
    for measure, why in silent_measures(results).items():
        warn(console, f"{measure} tells nothing here, because {why}.")
    console.print(arm_table(results, choice))
    if taxes := tax_table(results):
        console.print(Text(f"{taxes.caption}:"), taxes)
    console.print(Text(f"{choice.headline}. {choice.explanation}"), highlight=False)
    for missed in missed_targets(run_dir, run):
        warn(console, missed)
    console.print(Text(f"Read on in {run_dir / REPORT}"), soft_wrap=True, highlight=False)


def show_rest(setup: Setup, plan: Plan, console: Console) -> None:
    """The table of the arms that do not need what failed: a branch that fails leaves the fusions of the others."""
    from paft_plugin.report.arm_tables import arm_table
    from paft_plugin.report.collect import collect

    waiting, planned = why_run(setup, plan), read_run(setup.run_dir)
    done = [stage for stage in plan.stages if stage.name not in waiting]
    scored = {
        folder.name for stage in done for folder in (stage.folder, *stage.more_folders) if folder.parent == SCORES
    }
    through = [arm for arm in setup.arms if arm.name in scored]
    if planned is None or not through:
        return
    results = collect(setup.run_dir, planned.model_copy(update={"arms": tuple(through)}))
    console.print(Text("What does not need it is done:"))
    console.print(arm_table(results))


def warn(console: Console, warning: str) -> None:
    """Print what will surprise, and stops nothing."""
    console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True, highlight=False)


def make_executor(config: ExecutorConfig) -> Executor:
    """Where a run's stages run.

    Raises:
        PaftError: GPUs that are not there, a cluster that is not, the extra `ray` is not installed.
    """
    if config.kind == "ray":
        from paft_plugin.runner.ray.cluster import RayExecutor
        from paft_plugin.runner.ray.connect import Package

        return RayExecutor(config.address, Package("paft-plugin", "paft_plugin", __version__))
    found = find_devices()
    devices = found if config.devices == "auto" else choose_devices(config.devices, found)
    return LocalExecutor(devices, workers=config.workers, threads=config.threads, share_device=config.share_device)


def variables(setup: Setup) -> dict[str, str]:
    """For every command: no telemetry, and no network unless the config names something remote; what a user has set stays.

    And the secrets of the branches' configs, as axolotl would take them: before what is set.
    """
    wanted = {"TOKENIZERS_PARALLELISM": "false", "AXOLOTL_DO_NOT_TRACK": "1"}
    if not setup.remote:
        wanted["HF_HUB_OFFLINE"] = "1"
    secrets = {name: value for branch in setup.needed for name, value in branch.secrets.items()}
    return {name: value for name, value in wanted.items() if name not in os.environ} | secrets
