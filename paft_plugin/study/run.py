"""`axolotl paft study`: the runs of all seeds, one after another, and what they come to together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paft_plugin.errors import Findings, PaftError, collecting, raise_if_any, some
from paft_plugin.files import write_text
from paft_plugin.pipeline.arms import open_config
from paft_plugin.pipeline.config import PaftConfig
from paft_plugin.pipeline.estimate.disk import free_bytes, needed_bytes, still_needed
from paft_plugin.pipeline.plan import SCORES, make_plan
from paft_plugin.pipeline.run import look_ahead, run_pipeline, say, table_of, warn, why_run
from paft_plugin.reading import parse_yaml
from paft_plugin.runner.lock import locked
from paft_plugin.runner.logs import size
from paft_plugin.runner.watch.display import duration
from paft_plugin.schema import validate
from paft_plugin.study.config import read_configs
from paft_plugin.study.cost import Runs, costs, expected
from paft_plugin.study.design import DESIGN_FILE, SEEDS, Design
from paft_plugin.study.planning.plan import SeedRun, StudyPlan, plan_study


def run_study(file: Path, console: Console) -> None:
    """Run every seed of the study in `file` as far as it is not up to date, and write what all of them come to.

    A seed that fails leaves the others; what is finished is kept.

    Raises:
        PaftError: All that is wrong with the file and what it names; stages that failed, once every seed has been tried.
        KeyboardInterrupt: After Ctrl-C, once no process of the study is left.
    """
    plan = _plan(file)
    raise_if_any(_look_ahead(_open_all(plan.runs, download=True)).problems)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with locked(plan.folder, patience=1.0):
        _run(plan, console)


def _plan(file: Path) -> StudyPlan:
    """What the study in `file` runs; its design says what of it has changed since something was scored."""
    from paft_plugin.study.page import refuse_foreign

    plan = plan_study(file, read_configs(file))
    refuse_foreign(plan.folder)
    return replace(plan, design=compared_with_before(plan.design, plan.folder))


def _run(plan: StudyPlan, console: Console) -> None:
    design = freeze(plan.design, plan.folder)
    for change in design.changes:
        warn(console, change)
    for run in plan.runs:
        write_text(run.file, run.text)
    problems: list[str] = []
    failed: list[int] = []
    for run in plan.runs:
        console.rule(f"Seed {run.seed}")
        before = len(problems)
        with collecting(problems):
            run_pipeline(run.file, console)
        failed += [run.seed] if len(problems) > before else []
    if len(failed) < len(plan.runs):
        with collecting(problems):
            _conclude(plan, design, console, failed)
    raise_if_any(problems)


def freeze(design: Design, folder: Path) -> Design:
    """Write the design, before anything is scored; what of it has changed since something was stays in it as a sentence.

    Raises:
        PaftError: As `compared_with_before` says.
    """
    design = compared_with_before(design, folder)
    design.write(folder / DESIGN_FILE)
    return design


def compared_with_before(design: Design, folder: Path) -> Design:
    """The design with a sentence for each change since something was scored, and all of before.

    Raises:
        PaftError: The design of before is damaged, or another study's, whose scores are there.
    """
    file, changes = folder / DESIGN_FILE, []
    before = Design.read(file) if file.is_file() else None
    if _scored(folder):
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        if before is None:
            changes = [f"There was no {DESIGN_FILE} when the first arm was scored ({now})."]
        elif (before.skill, before.preference) != (design.skill, design.preference):
            raise PaftError(
                f"{folder}: has the scores of another study, of {before.skill} and {before.preference}. Set another output_dir, "
                "or move that away."
            )
        else:
            changes = [f"{what} after scores existed ({now})." for what in _changed(before, design)]
    return design.model_copy(update={"changes": (*(before.changes if before else ()), *changes)})


def _changed(before: Design, now: Design) -> Iterator[str]:
    asked = [{contrast.name: contrast for contrast in each.contrasts} for each in (before, now)]
    others = [name for name in dict.fromkeys([*asked[0], *asked[1]]) if asked[0].get(name) != asked[1].get(name)]
    changed = [name for name, part in now.frozen.items() if before.frozen.get(name, part) != part]
    if changed:
        verb = "were" if changed[1:] or changed[0].endswith("s") else "was"
        said = [f"{name} ({some(others)})" if name == "contrasts" else name for name in changed]
        yield f"The {' and the '.join(said)} {verb} changed"
    was, now_is = [
        {(arm.name, arm.group, arm.curve): (arm.settings, arm.of, arm.match) for arm in each.arms}
        for each in (before, now)
    ]
    if arms := [key[0] for key, what in was.items() if now_is.get(key, what) != what]:
        yield f"The settings of {some(list(dict.fromkeys(arms)))} were changed"
    old, new = [arm.name for arm in before.arms], [arm.name for arm in now.arms]
    for verb, these, others in (("added", new, old), ("left out", old, new)):
        if arms := [name for name in dict.fromkeys(these) if name not in others]:
            yield f"{some(arms)} {'were' if arms[1:] else 'was'} {verb}"


def _scored(folder: Path) -> bool:
    """Whether any seed has scores, or what they came to is there without the seeds' runs."""
    from paft_plugin.study.scores import FIGURES_FILE

    return (folder / FIGURES_FILE).is_file() or any(folder.glob(f"{SEEDS}/*/{SCORES}/*/scores.json"))


def _conclude(plan: StudyPlan, design: Design, console: Console, failed: Sequence[int]) -> None:
    from paft_plugin.study.scores import collect

    collect(plan.folder, design, costs(design, _open_all(plan.runs)), failed)
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
    plan = _plan(file)
    runs = _open_all(plan.runs)
    console.print(Text(f"The study in {plan.folder}", style="bold"), soft_wrap=True)
    console.print(_arms_shown(plan.design))
    table = table_of("Seed", "To run", "Trainings", "Time", "Disk")
    waiting = {seed: why_run(setup, stages) for seed, (setup, stages) in runs.items()}
    times = expected(runs, waiting)
    for seed, (setup, stages) in runs.items():
        trained = [stage.name for stage in stages.stages if stage.name in waiting[seed] and stage.resumes]
        to_run = f"{len(waiting[seed])} of {len(stages.stages)} stages"
        trainings = f"{len(trained)}: {some(trained, 4)}" if trained else "0"
        table.add_row(str(seed), to_run, trainings, _time(*times[seed]), size(needed_bytes(setup)))
    console.print(table)
    if any(seconds for seconds, _ in times.values()):
        console.print(Text("Time: what the stages to run took with other seeds or before, one after another."))
    for contrast in plan.design.contrasts:
        sides = [f"{name} ({len(plan.design.named(name))})" for name in (contrast.one, contrast.other)]
        said = f"{contrast.name}: {' against '.join(sides)} by {contrast.measure}. {contrast.question}"
        console.print(Text(said.rstrip()), soft_wrap=True)
    console.print(Text(f"{size(free_bytes(plan.folder))} of the disk are free."), highlight=False)
    for change in plan.design.changes:
        warn(console, f"its page will say: {change}")
    if len(runs) == 1:
        warn(console, "one seed says nothing of what another training would come to.")
    console.print(Text("Looking at configs, rows and tasks …"))
    say(_look_ahead(runs), console)


def _time(seconds: float, unknown: int) -> str:
    known = duration(seconds) if seconds or not unknown else ""
    return " + ".join(part for part in (known, f"{unknown} unknown" if unknown else "") if part)


def _look_ahead(runs: Runs) -> Findings:
    """What any of the runs would find; of the last one, too, before the first one trains for hours."""
    findings = Findings()
    found = {seed: look_ahead(setup, plan) for seed, (setup, plan) in runs.items()}
    findings.warn(*_with_seeds({seed: each.warnings for seed, each in found.items()}))
    findings.problem(*(said := _with_seeds({seed: each.problems for seed, each in found.items()})))
    wanted = sum(still_needed(setup) for setup, _ in runs.values())
    free = min(free_bytes(setup.run_dir) for setup, _ in runs.values())
    if wanted > free and not said:
        findings.warn(
            f"All seeds together write about {size(wanted)} more, and the disk has {size(free)} free: the last will be refused."
        )
    return findings


def _with_seeds(said: Mapping[int, Sequence[str]]) -> list[str]:
    """Each sentence once, with the seeds that it is about where these are not all."""
    seeds: dict[str, list[str]] = {}
    for seed, sentences in said.items():
        for sentence in sentences:
            seeds.setdefault(sentence, []).append(str(seed))
    return [text if len(of) == len(said) else f"seed {some(of)}: {text}" for text, of in seeds.items()]


def _arms_shown(design: Design) -> Table:
    table = table_of("What", "Way or name", "Form", "Arms")
    groups: dict[tuple[str, str, str], list[str]] = {}
    for arm in design.arms:
        groups.setdefault((arm.group, arm.way or arm.control or arm.curve or "", arm.form or ""), []).append(arm.name)
    for kind, names in groups.items():
        table.add_row(*kind, f"{len(names)}: {some(names)}")
    return table


def _open_all(runs: Sequence[SeedRun], *, download: bool = False) -> Runs:
    """The runs of all seeds and their plans; what they name by a hub name is in the local cache, or fetched if that is wanted.

    Raises:
        PaftError: All that is wrong in any of them.
    """
    problems: list[str] = []
    found = {}
    for run in runs:
        with collecting(problems):
            config = validate(PaftConfig, parse_yaml(run.text, run.file), run.file)
            setup = open_config(config, run.file, download=download)
            found[run.seed] = (setup, make_plan(setup))
    raise_if_any(problems)
    return found
