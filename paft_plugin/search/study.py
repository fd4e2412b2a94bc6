"""The study: Optuna's, in SQLite, one process at a time, the same from the same inputs however often it is cut off.

The sampler is the tree-structured Parzen estimator (Bergstra et al., 2011; several objectives: Ozaki et al., 2022): it learns
from the first ten trials on and knows conditional settings, where NSGA-II would spend a whole search of 40 trials on its first
generation. It gets a new seed for every trial, from the search's seed and the number of finished trials. So a trial that was cut
off is proposed again, and all that follows is as if nothing had happened.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from paft_plugin.errors import PaftError, one_line
from paft_plugin.files import lock_file
from paft_plugin.search.space import Options, Space, propose, seed_of

if TYPE_CHECKING:
    import optuna

DATABASE = "study.db"
LOCK = ".lock"
NAME = "paft"
STARTUP_TRIALS = 10
"""Optuna's default: so many are random before the sampler trusts what it saw."""


@dataclass(frozen=True)
class Proposal:
    """Settings to try."""

    method: str
    options: Options
    """Of `RecipeSettings`; empty for a method's defaults."""
    is_default: bool
    trial: Any = None
    """Optuna's running trial; None for a method's defaults, which Optuna only hears about afterwards."""


@dataclass(frozen=True)
class Finished:
    """Settings that were tried."""

    number: int
    """From 1 on, trials that were cut off not counted."""
    method: str
    options: Options
    is_default: bool
    scores: tuple[float, ...] | None
    """In the order of the objectives, means over the draws; None if one of them is no finite number."""
    stderr: tuple[float | None, ...]
    """Of the items, in one draw."""
    seconds: float
    draws: int = 1
    """Merges with another seed each, of a method that drops by chance."""
    spread: tuple[float, ...] | None = None
    """Standard deviation of each score from draw to draw; None of a single one."""


class Study:
    """A search's memory. Open it with `open_study`."""

    def __init__(self, study: optuna.Study, spaces: Mapping[str, Space], seed: int) -> None:
        self._study = study
        self._spaces = spaces
        self._seed = seed

    def finished(self) -> list[Finished]:
        """Every trial that was scored, in the order in which they were."""
        import optuna

        states = optuna.trial.TrialState
        told = [
            trial
            for trial in self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL))
            # A trial that was cut off has failed too, without having been told anything.
            if trial.state == states.COMPLETE or trial.user_attrs.get("without_score")
        ]
        draws = self._draws()
        return [_finished(number, trial, draws.get(str(number), ())) for number, trial in enumerate(told, start=1)]

    def _draws(self) -> dict[str, list[list[float] | None]]:
        """Trial's number → its scores with the seeds after the first."""
        kept: dict[str, list[list[float] | None]] = self._study.user_attrs.get("draws") or {}
        return kept

    def draw(self, trial: Finished, scores: Sequence[float] | None) -> None:
        """Remember what a trial comes to with the next seed; None if it has no finite score."""
        draws = self._draws()
        more = [*draws.get(str(trial.number), []), None if scores is None else list(scores)]
        self._study.set_user_attr("draws", {**draws, str(trial.number): more})

    def ask(self, count: int = 1) -> list[Proposal]:
        """What to try next, at most `count`: first each method's defaults, then what the sampler proposes, if it can choose."""
        finished = self.finished()
        seen = {trial.method for trial in finished if trial.is_default}
        defaults = [Proposal(method, {}, is_default=True) for method in self._spaces if method not in seen][:count]
        if not any(space.searched for space in self._spaces.values()):
            return defaults
        places = range(len(finished) + len(defaults), len(finished) + count)
        return [*defaults, *(self._propose(place, at_once=count > 1) for place in places)]

    def _propose(self, place: int, *, at_once: bool) -> Proposal:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Said, because Optuna 4 and 5 have other defaults. The constant liar keeps trials at once apart.
            self._study.sampler = optuna.samplers.TPESampler(
                multivariate=True,
                group=True,
                constant_liar=at_once,
                n_startup_trials=STARTUP_TRIALS,
                seed=seed_of(self._seed, place),
            )
        trial = self._study.ask()
        method, options = propose(trial, self._spaces)
        return Proposal(method, options, is_default=False, trial=trial)

    def tell(
        self, proposal: Proposal, scores: Sequence[float] | None, stderr: Sequence[float | None], seconds: float
    ) -> None:
        """Remember what a proposal came to; None if it has no finite score."""
        import optuna

        states = optuna.trial.TrialState
        state = states.FAIL if scores is None else states.COMPLETE
        attributes = {
            "method": proposal.method,
            "options": proposal.options,
            "is_default": proposal.is_default,
            "stderr": list(stderr),
            "seconds": seconds,
            "without_score": scores is None,
        }
        if proposal.trial is None:
            chosen = self._as_parameters(proposal.method)
            told = optuna.trial.create_trial(state=state, values=scores, user_attrs=attributes, **chosen)
            self._study.add_trial(told)
            return
        for key, value in attributes.items():
            proposal.trial.set_user_attr(key, value)
        self._study.tell(proposal.trial, scores, state=state)

    def _as_parameters(self, method: str) -> dict[str, dict[str, Any]]:
        """A method's defaults as the sampler would have proposed them, so that it can learn from them too."""
        import optuna

        space = self._spaces[method]
        defaults = space.default()
        if not space.searched or not defaults:
            return {"params": {}, "distributions": {}}
        fixed = optuna.trial.FixedTrial({"method": method, **defaults})
        propose(fixed, self._spaces)
        return {"params": fixed.params, "distributions": fixed.distributions}


def _finished(number: int, trial: optuna.trial.FrozenTrial, draws: Sequence[Sequence[float] | None]) -> Finished:
    """A trial, with all its draws; without a finite score in one of them it has none."""
    every = [tuple(trial.values) if trial.values else None, *draws]
    scored = [scores for scores in every if scores is not None]
    columns = list(zip(*scored, strict=True)) if len(scored) == len(every) else []
    return Finished(
        number,
        trial.user_attrs["method"],
        trial.user_attrs["options"],
        trial.user_attrs["is_default"],
        tuple(map(fmean, columns)) or None,
        tuple(trial.user_attrs["stderr"]),
        trial.user_attrs["seconds"],
        len(every),
        tuple(map(stdev, columns)) if len(every) > 1 and columns else None,
    )


@contextmanager
def open_study(
    folder: Path, directions: Sequence[str], inputs: Mapping[str, str], spaces: Mapping[str, Space], seed: int
) -> Iterator[Study]:
    """Begin a study in a folder, or go on with the one that is there. Hold the folder with `locked` meanwhile.

    `directions` says `maximize` or `minimize` for each objective; `inputs` are the fingerprints of what decides the scores and
    the proposals, by what it is; the order of `spaces` is that in which the methods' defaults are tried.

    Raises:
        PaftError: The study there is of other inputs, or no study at all.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / DATABASE
    try:
        # By a function rather than by an address, in which a `?` of the path would have a meaning.
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{DATABASE}",
            engine_kwargs={"creator": partial(sqlite3.connect, str(file), check_same_thread=False)},
        )
        study = optuna.create_study(storage=storage, study_name=NAME, directions=list(directions), load_if_exists=True)
    except Exception as error:  # SQLAlchemy's, SQLite's and alembic's, for a file that is no database of Optuna's
        reason = one_line(error, 200)
        raise PaftError(f"{file}: cannot be used ({reason}). Delete {folder} to search anew.") from error
    try:
        _check_inputs(study, inputs, folder)
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # it was cut off
        yield Study(study, spaces, seed)
    finally:
        storage.engine.dispose()


def _check_inputs(study: optuna.Study, inputs: Mapping[str, str], folder: Path) -> None:
    before = study.user_attrs.get("inputs")
    if before is None:
        study.set_user_attr("inputs", dict(inputs))
        return
    changed = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
    if changed:
        raise PaftError(
            f"{folder}: the search there is of other inputs: {', '.join(changed)} changed since. Undo that to go on with it, "
            "give another output_dir, or delete the folder to search anew."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold its `.lock`: one search at a time, and a killed one holds nothing.

    Raises:
        PaftError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_file(folder / LOCK)
    except BlockingIOError:
        busy = f"{folder}: another search is at work there. Wait for it, or give another output_dir."
        raise PaftError(busy) from None
    try:
        yield
    finally:
        os.close(lock)
