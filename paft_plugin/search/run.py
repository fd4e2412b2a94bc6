"""Runs a search: checks everything, loads the base once, tries settings until there are enough, and writes what came out."""

from __future__ import annotations

import json
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.files import fingerprint
from paft_plugin.search.config import PaftConfig, read_config, too_few
from paft_plugin.search.report import (
    Outcome,
    legend,
    merge_commands,
    recipe_request,
    search_folder,
    show,
    table,
    write_outcome,
)
from paft_plugin.search.space import Space, make_spaces
from paft_plugin.search.study import Finished, Proposal, Study, locked, open_study

if TYPE_CHECKING:
    from paft_plugin.evaluation.scorer import Scorer
    from paft_plugin.search.model import FusedModel
    from paft_plugin.search.validation import Goal

EXTRA = "optuna"
LIBRARIES = ("paft-plugin", "optuna", "mergekit", "lm_eval", "transformers", "torch")


def run_search(file: Path, console: Console, *, trials: int | None = None, timeout: float | None = None) -> Outcome:
    """Search as a `paft.yml` says, in `<output_dir>/search`; an earlier search there of the same inputs goes on.

    Args:
        file: The `paft.yml`.
        console: Where progress and the table go.
        trials: How many in all, instead of the file's.
        timeout: Seconds, instead of the file's.

    Raises:
        PaftError: All that is wrong with the file, the branches or the tasks; another search in the same place.
        KeyboardInterrupt: After Ctrl-C, once the running trial is finished and everything is written.
    """
    require_extra()
    config = read_config(file)
    given = {"trials": trials, "timeout": timeout}
    config = config.model_copy(
        update={
            "search": config.search.model_copy(update={key: value for key, value in given.items() if value is not None})
        }
    )
    if config.search.trials < len(config.search.methods):
        raise PaftError(f"--trials: {too_few(config.search)}")
    return _search(config, console)


def require_extra() -> None:
    """Optuna comes with the extra.

    Raises:
        PaftError: It is not installed.
    """
    if find_spec(EXTRA) is None:
        raise PaftError(f"A search needs {EXTRA}: pip install 'paft-plugin[search]'.")


def _search(config: PaftConfig, console: Console) -> Outcome:
    from paft_plugin.evaluation.scorer import Scorer
    from paft_plugin.search.model import FusedModel, resolve_device
    from paft_plugin.search.validation import open_goals

    search = config.search
    device = resolve_device(search.device)
    inputs = _branch_inputs(config)
    goals, tasks = open_goals(search.objectives, search.tasks, search.test_tasks)
    folder = search_folder(config)
    with locked(folder):
        console.print(f"Loading {config.base} …", highlight=False, markup=False)
        model = FusedModel(config.base, search.dtype, device, search.batch_size)
        scorer = Scorer(model.lm, tasks, search.limit)
        spaces = make_spaces({name: _given(ranges) for name, ranges in search.methods.items()})
        inputs |= _scoring_inputs(config, goals, scorer, spaces)
        with open_study(folder, [goal.direction for goal in goals], inputs, spaces, search.seed) as study:
            trial = _Trial(config, goals, model, scorer, folder / ".trial.yml")
            try:
                stopped = _try_all(config, study, trial, console, goals)
            finally:
                trial.recipe.unlink(missing_ok=True)
            outcome = Outcome(config, device, goals, study.finished(), inputs, _versions(), trial.items)
        _write(outcome, console, stopped)
    if stopped == "interrupted":
        raise KeyboardInterrupt
    return outcome


class _Trial:
    """Tries settings: recipe, merge in memory, scores."""

    def __init__(self, config: PaftConfig, goals: list[Goal], model: FusedModel, scorer: Scorer, recipe: Path) -> None:
        self._config = config
        self._goals = goals
        self._model = model
        self._scorer = scorer
        self.recipe = recipe
        self.items = {goal.task: scorer.items(goal.task) for goal in goals}

    def run(self, proposal: Proposal) -> tuple[list[float] | None, list[float | None]]:
        """The scores, None if one is no finite number; and their standard errors where there are any."""
        from paft_plugin.fusion.recipe import write_recipe

        write_recipe(recipe_request(self._config, proposal.method, proposal.options, self.recipe))
        self._model.become(self.recipe, self._config.search.seed)
        scored = self._scorer.score()
        raise_if_any(
            [
                f"search.objectives.{goal.task}: lm-eval reports no {goal.metric}, but {', '.join(scored[goal.task].values)}."
                for goal in self._goals
                if goal.metric not in scored[goal.task].values
            ]
        )
        values = [scored[goal.task].values[goal.metric] for goal in self._goals]
        stderr = [scored[goal.task].stderr.get(goal.metric) for goal in self._goals]
        return (values if all(map(math.isfinite, values)) else None), stderr


def _try_all(config: PaftConfig, study: Study, trial: _Trial, console: Console, goals: list[Goal]) -> str:
    """Try settings until there are enough; returns why it stopped."""
    search = config.search
    begun = time.monotonic()
    before = study.finished()
    if before:
        console.print(f"Going on after {len(before)} finished trials.", highlight=False)
    with _interruptible(console) as interrupted, _progress(console, search.trials, len(before)) as advance:
        for done in range(len(before), search.trials):
            if interrupted():
                return "interrupted"
            if search.timeout is not None and time.monotonic() - begun > search.timeout:
                return "timeout"
            proposal = study.ask()
            if proposal is None:
                return "exhausted"
            start = time.monotonic()
            scores, stderr = trial.run(proposal)
            study.tell(proposal, scores, stderr, time.monotonic() - start)
            finished = study.finished()[done]
            console.print(_line(finished, goals), highlight=False, markup=False)
            advance()
    return "done"


def _line(trial: Finished, goals: list[Goal]) -> str:
    if trial.scores is None:
        scores = "no finite score"
    else:
        scores = "  ".join(f"{goal.name} {show(score)}" for goal, score in zip(goals, trial.scores, strict=True))
    return f"{trial.number:4}  {trial.method:15}  {scores}{'  (defaults)' if trial.is_default else ''}"


def _write(outcome: Outcome, console: Console, stopped: str) -> None:
    from paft_plugin.search.plot import draw_front

    write_outcome(outcome)
    if outcome.scored:
        draw_front(outcome)
        console.print(table(outcome))
        console.print(legend(outcome), highlight=False)
    total = outcome.config.search.trials
    if stopped == "timeout":
        console.print(f"Time is up after {len(outcome.trials)} of {total} trials: run the same command again to go on.")
    if stopped == "exhausted":
        console.print("These methods have nothing to choose, so their defaults are all that there is to try.")
    if outcome.start:
        start = merge_commands(outcome, outcome.start)[0]
        console.print(
            f"\nMerge the one to start with:\n{shlex.join(start)}", highlight=False, markup=False, soft_wrap=True
        )


@contextmanager
def _interruptible(console: Console) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C lets the running trial finish, a second one is a `KeyboardInterrupt` at once."""
    pressed = threading.Event()

    def note(_signal: int, _frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        console.print("Stopping after the running trial; Ctrl-C again stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar below the lines, where there is a terminal."""
    columns = (TextColumn("Searching"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda: progress.advance(task)


def _branch_inputs(config: PaftConfig) -> dict[str, str]:
    """Fingerprints of the base and the branches; everything that keeps them from belonging together is said here."""
    from paft_plugin.deltas import check_belongs, open_delta

    problems = [problem for branch in (config.sft, config.preference) for problem in check_belongs(config.base, branch)]
    raise_if_any(list(dict.fromkeys(problems)))
    sft, preference = (open_delta(config.base, branch) for branch in (config.sft, config.preference))
    return {
        "the base model": sft.base.fingerprint,
        "the SFT branch": sft.branch_fingerprint(),
        "the preference branch": preference.branch_fingerprint(),
    }


def _scoring_inputs(config: PaftConfig, goals: list[Goal], scorer: Scorer, spaces: dict[str, Space]) -> dict[str, str]:
    """Fingerprints of what else decides the scores, or what is proposed."""
    space = [[name, sorted(space.ranges.items())] for name, space in spaces.items()]
    return {
        **{f"the task {goal.task}": scorer.fingerprint(goal.task) for goal in goals},
        "the objectives": fingerprint(f"{goal.task} {goal.metric} {goal.direction}" for goal in goals),
        "the methods or their ranges": fingerprint([json.dumps(space)]),
        "the seed": str(config.search.seed),
        "the limit": str(config.search.limit),
        "the dtype": config.search.dtype,
    }


def _given(ranges: Any) -> dict[str, tuple[float, float]]:
    return {name: pair for name, pair in ranges if pair is not None}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
