"""`axolotl paft study`: the runs of all seeds, one after another, and what they come to together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paft_plugin.errors import collecting, raise_if_any, some
from paft_plugin.files import write_text
from paft_plugin.pipeline.arms import Setup, open_config
from paft_plugin.pipeline.config import PaftConfig
from paft_plugin.pipeline.estimate.disk import free_bytes, needed_bytes
from paft_plugin.pipeline.plan import SCORES, make_plan
from paft_plugin.pipeline.run import check, run_pipeline, why_run
from paft_plugin.reading import parse_yaml
from paft_plugin.runner.logs import size
from paft_plugin.schema import validate
from paft_plugin.study.config import read_configs
from paft_plugin.study.cost import costs
from paft_plugin.study.design import DESIGN_FILE, SEEDS, Design
from paft_plugin.study.plan import SeedRun, StudyPlan, plan_study


def run_study(file: Path, console: Console) -> None:
    """Run every seed of the study in `file` as far as it is not up to date, and write what all of them come to.

    A seed that fails leaves the others; what is finished is kept.

    Raises:
        PaftError: All that is wrong with the file and what it names; stages that failed, once every seed has been tried.
        KeyboardInterrupt: After Ctrl-C, once no process of the study is left.
    """
    plan = plan_study(file, read_configs(file))
    _open_all(plan.runs)
    design = freeze(plan.design, plan.folder)
    for change in design.changes:
        console.print(Text(f"Warning: {change}", style="yellow"), soft_wrap=True)
    for run in plan.runs:
        write_text(run.file, run.text)
    problems: list[str] = []
    for run in plan.runs:
        console.rule(f"Seed {run.seed}")
        with collecting(problems):
            run_pipeline(run.file, console)
    if not problems or _scored(plan.folder):
        with collecting(problems):
            _conclude(plan, design, console)
    raise_if_any(problems)


def freeze(design: Design, folder: Path) -> Design:
    """Write the design, before anything is scored; what of it has changed since something was stays in it as a sentence.

    Raises:
        PaftError: The design of before is damaged.
    """
    file, changes = folder / DESIGN_FILE, []
    before = Design.read(file) if file.is_file() else None
    if _scored(folder):
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        if before is None:
            changes = [f"There was no {DESIGN_FILE} when the first arm was scored ({now})."]
        else:
            changed = [name for name, print_ in design.frozen.items() if before.frozen[name] != print_]
            verb = "were" if changed[1:] or (changed and changed[0].endswith("s")) else "was"
            changes = (
                [f"The {' and the '.join(changed)} {verb} changed after scores existed ({now})."] if changed else []
            )
    design = design.model_copy(update={"changes": (*(before.changes if before else ()), *changes)})
    design.write(file)
    return design


def _scored(folder: Path) -> bool:
    """Whether any seed has scores."""
    return any(folder.glob(f"{SEEDS}/*/{SCORES}/*/scores.json"))


def _conclude(plan: StudyPlan, design: Design, console: Console) -> None:
    from paft_plugin.study.scores import collect

    runs = {seed: (setup, make_plan(setup)) for seed, setup in _open_all(plan.runs).items()}
    collect(plan.folder, design, costs(design, runs))
    recompute(plan.folder, console)


def recompute(folder: Path, console: Console) -> None:
    """Write every table and figure of a study from its small files alone, and show the most important ones.

    Raises:
        PaftError: One of the files is missing or damaged.
    """
    from paft_plugin.study.page import PAGE, write_study

    for table in write_study(folder)[:-1]:  # the last one has every arm
        console.print(Text(f"{table.caption}:"), table)
    console.print(Text(f"Read on in {folder / PAGE}"), soft_wrap=True, highlight=False)


def show_study(file: Path, console: Console) -> None:
    """Print what a study runs, and what of it would run now; writes nothing.

    Raises:
        PaftError: All that is wrong with the file and what it names.
    """
    plan = plan_study(file, read_configs(file))
    setups = _open_all(plan.runs)
    console.print(Text(f"The study in {plan.folder}", style="bold"), soft_wrap=True)
    console.print(_arms_shown(plan.design))
    table = _table("Seed", "Stages", "To run", "of them trainings", "Trainings to run", "Disk")
    for seed, setup in setups.items():
        stages = make_plan(setup)
        waiting = why_run(setup, stages)
        trained = [
            stage.name for stage in stages.stages if stage.name in waiting and "train" in stage.title.split()[:1]
        ]
        counts = [len(stages.stages), len(waiting), len(trained)]
        table.add_row(str(seed), *map(str, counts), some(trained, 4), size(needed_bytes(setup)))
    console.print(table)
    for contrast in plan.design.contrasts:
        sides = [f"{name} ({len(plan.design.named(name))})" for name in (contrast.one, contrast.other)]
        said = f"{contrast.name}: {' against '.join(sides)} by {contrast.measure}. {contrast.question}"
        console.print(Text(said.rstrip()), soft_wrap=True)
    console.print(Text(f"{size(free_bytes(plan.folder))} of the disk are free."), highlight=False)
    for setup in setups.values():
        check(setup, make_plan(setup), console)


def _arms_shown(design: Design) -> Table:
    table = _table("What", "Way or name", "Form", "Arms")
    counts = Counter((arm.group, arm.way or arm.control or arm.curve or "", arm.form or "") for arm in design.arms)
    for (group, what, form), count in counts.items():
        table.add_row(group, what, form, str(count))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _open_all(runs: Sequence[SeedRun]) -> dict[int, Setup]:
    """The runs of all seeds, as far as they are known without a download.

    Raises:
        PaftError: All that is wrong in any of them.
    """
    problems: list[str] = []
    found = {}
    for run in runs:
        with collecting(problems):
            config = validate(PaftConfig, parse_yaml(run.text, run.file), run.file)
            found[run.seed] = open_config(config, run.file)
    raise_if_any(problems)
    return found
