"""A search: checks everything, loads the base once, tries settings on it until there are enough, and writes what came out."""

from __future__ import annotations

import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paft_plugin.deltas.belongs import check_belongs, check_finite
from paft_plugin.deltas.delta import open_delta
from paft_plugin.errors import PaftError, raise_if_any, signals_noted
from paft_plugin.files import fingerprint
from paft_plugin.formats import number
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.machine import usable_devices
from paft_plugin.search.bench import Benches, TrialBench, open_benches
from paft_plugin.search.config import SearchRequest, too_few
from paft_plugin.search.plot import draw_front
from paft_plugin.search.report import Outcome, compared, legend, merge_commands, table, write_outcome
from paft_plugin.search.space import Space, make_spaces
from paft_plugin.search.study import Finished, Study, locked, open_study
from paft_plugin.search.validation import open_objectives

if TYPE_CHECKING:
    from paft_plugin.evaluation.results import Measure

EXTRA = "optuna"
CALLED = {"sft": "the SFT branch", "preference": "the preference branch"}
"""What messages call the two branches of the smallest case."""
LIBRARIES = ("paft-plugin", "optuna", "mergekit", "lm_eval", "transformers", "torch")


def run_search(
    request: SearchRequest, console: Console, *, trials: int | None = None, timeout: float | None = None
) -> Outcome:
    """Search as asked, in `<output_dir>/search`; an earlier search there of the same inputs goes on.

    `trials` and `timeout` (in seconds) stand in for the request's own.

    Raises:
        PaftError: All that is wrong with the branches or the tasks; another search in the same place.
        KeyboardInterrupt: After Ctrl-C, once the running trial is finished and everything is written.
    """
    require_extra()
    given = {key: value for key, value in {"trials": trials, "timeout": timeout}.items() if value is not None}
    request = replace(request, search=request.search.model_copy(update=given))
    if request.search.trials < len(request.search.methods):
        raise PaftError(f"--trials: {too_few(request.search)}")
    return _search(request, console)


def require_extra() -> None:
    """Optuna comes with the extra.

    Raises:
        PaftError: It is not installed.
    """
    if find_spec(EXTRA) is None:
        raise PaftError(f"A search needs {EXTRA}: pip install 'paft-plugin[search]'.")


def _search(request: SearchRequest, console: Console) -> Outcome:
    search, folder = request.search, request.folder
    devices = usable_devices(search.device, "search.device")
    branches = _branch_inputs(request)
    objectives = open_objectives(request)  # before the model is loaded
    with locked(folder):
        console.print(f"Loading {request.base} …", highlight=False, markup=False)
        with open_benches(request, objectives, devices) as benches:
            goals = benches.first.goals
            spaces = make_spaces(search.methods, request.branches)
            inputs = branches | _scoring_inputs(benches.first, spaces)
            directions = [goal.direction for goal in goals]
            with open_study(folder, directions, inputs, spaces, search.seed) as study:
                stopped = _try(study, benches, console)
                trials = study.finished()
        if changed := [name for name, content in _branch_inputs(request).items() if content != branches[name]]:
            raise PaftError(
                f"{folder}: {' and '.join(changed)} changed during the search, so its trials are of different models. "
                "Delete the folder and search anew once nothing writes them any more."
            )
        items = {goal.task: benches.first.items[goal.task] for goal in goals}
        versions = {name: version(name) for name in LIBRARIES}
        outcome = Outcome(request, devices[0], goals, trials, inputs, versions, items)
        _write(outcome, console, stopped)
    if stopped == "interrupted":
        raise KeyboardInterrupt
    return outcome


def _try(study: Study, benches: Benches, console: Console) -> str:
    """Try settings, and draw again what drops by chance; returns why it stopped."""
    with _interruptible(console) as interrupted:
        stopped = _try_all(study, benches, console, interrupted)
        if stopped in ("interrupted", "timeout"):
            return stopped
        return _draw_again(study, benches, console, interrupted) or stopped


def _try_all(study: Study, benches: Benches, console: Console, interrupted: Callable[[], bool]) -> str:
    """Try settings until there are enough; returns why it stopped."""
    search, goals = benches.first.request.search, benches.first.goals
    begun = time.monotonic()
    done = len(study.finished())
    if done:
        console.print(f"Going on after {done} finished trials.", highlight=False)
    with _progress(console, search.trials, done) as advance:
        while done < search.trials:
            if interrupted():
                return "interrupted"
            if search.timeout is not None and time.monotonic() - begun > search.timeout:
                return "timeout"
            proposals = study.ask(min(len(benches), search.trials - done))
            if not proposals:
                return "exhausted"
            start = time.monotonic()
            results = benches.score([(one.method, one.options, search.seed) for one in proposals])
            for proposal, (scores, stderr) in zip(proposals, results, strict=True):
                study.tell(proposal, scores, stderr, time.monotonic() - start)
            for trial in study.finished()[done:]:
                console.print(_line(trial, goals), highlight=False, markup=False)
                advance()
            done += len(proposals)
    return "done"


def _draw_again(study: Study, benches: Benches, console: Console, interrupted: Callable[[], bool]) -> str | None:
    """Merge what is compared in the end, as far as it drops by chance, with other seeds, too; returns why it stopped early.

    A lucky draw is on the front for its luck; so whatever comes to be on it has to show as many draws as the others.
    """
    seeds, goals = benches.first.request.search.seeds, benches.first.goals
    while lucky := [one for one in compared(study.finished(), goals) if _is_random(one) and one.draws < len(seeds)]:
        for trial in lucky:
            for place in range(trial.draws, len(seeds), len(benches)):
                if interrupted():
                    return "interrupted"
                some_seeds = seeds[place : place + len(benches)]
                for scores, _ in benches.score([(trial.method, trial.options, seed) for seed in some_seeds]):
                    study.draw(trial, scores)
            console.print(_line(study.finished()[trial.number - 1], goals), highlight=False, markup=False)
    return None


def _is_random(trial: Finished) -> bool:
    return METHODS[trial.method].drops_at_random and trial.scores is not None


def _line(trial: Finished, goals: list[Measure]) -> str:
    named = zip(goals, trial.scores or (), strict=False)
    scores = "  ".join(f"{goal.name} {number(score)}" for goal, score in named) or "no finite score"
    more = f"  (mean of {trial.draws} draws)" if trial.draws > 1 else ""
    return f"{trial.number:4}  {trial.method:15}  {scores}{'  (defaults)' if trial.is_default else ''}{more}"


def _write(outcome: Outcome, console: Console, stopped: str) -> None:
    write_outcome(outcome)
    if outcome.scored:
        draw_front(outcome)
        console.print(table(outcome))
        console.print(legend(outcome), highlight=False)
    total = outcome.request.search.trials
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

    with signals_noted((signal.SIGINT,), note):
        yield pressed.is_set


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar below the lines, where there is a terminal."""
    columns = (TextColumn("Searching"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda: progress.advance(task)


def _branch_inputs(request: SearchRequest) -> dict[str, str]:
    """Fingerprints of the base and the branches; everything that keeps them from belonging together is said here."""
    problems = [
        problem
        for branch in request.branches
        for problem in check_belongs(request.base, branch.path) or check_finite(branch.path)
    ]
    raise_if_any(list(dict.fromkeys(problems)))
    deltas = {branch.name: open_delta(request.base, branch.path) for branch in request.branches}
    return {
        "the base model": next(iter(deltas.values())).base.fingerprint,
        **{CALLED.get(name, f"the branch {name}"): delta.branch_fingerprint() for name, delta in deltas.items()},
    }


def _scoring_inputs(bench: TrialBench, spaces: Mapping[str, Space]) -> dict[str, str]:
    """Fingerprints of what else decides the scores, or what is proposed."""
    space, search = [[name, sorted(space.ranges.items())] for name, space in spaces.items()], bench.request.search
    return {
        **bench.inputs(),
        "the objectives": fingerprint(f"{goal.task} {goal.key} {goal.direction}" for goal in bench.goals),
        "the methods or their ranges": fingerprint([json.dumps(space)]),
        "the seed": str(search.seed),
        "the limit": str(search.limit),
        "the dtype": search.dtype,
    }
