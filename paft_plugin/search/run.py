"""A search: checks everything, loads the base once, tries settings on it until there are enough, and writes what came out."""

from __future__ import annotations

import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from paft_plugin.deltas.belongs import check_belongs, check_finite
from paft_plugin.deltas.delta import open_delta
from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.evaluation.candidates import Candidate, load
from paft_plugin.evaluation.score import score_model
from paft_plugin.evaluation.scorer import Scorer, quiet, tokenise_once
from paft_plugin.files import fingerprint
from paft_plugin.formats import number
from paft_plugin.fusion.merge import open_fusion
from paft_plugin.fusion.merge.fusion import NotFiniteError
from paft_plugin.fusion.recipe.write import write_recipe
from paft_plugin.machine import usable_device
from paft_plugin.search.config import SearchRequest, too_few
from paft_plugin.search.plot import draw_front
from paft_plugin.search.report import Outcome, legend, merge_commands, recipe_request, table, write_outcome
from paft_plugin.search.space import Space, make_spaces
from paft_plugin.search.study import Finished, Proposal, Study, locked, open_study
from paft_plugin.search.validation import open_goals

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from paft_plugin.evaluation.results import Measure

EXTRA = "optuna"
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
    search = request.search
    device = usable_device(search.device, "search.device")
    inputs = _branch_inputs(request)
    goals, tasks = open_goals(search.objectives, search.tasks, search.test_tasks, search.trust_task_code)
    folder = request.folder
    with locked(folder):
        console.print(f"Loading {request.base} …", highlight=False, markup=False)
        model = FusedModel(request.base, search.dtype, device, search.batch_size)
        with quiet():
            scorer = Scorer(model.lm, tasks, search.limit)
        spaces = make_spaces(search.methods)
        branches = inputs
        inputs = branches | _scoring_inputs(request, goals, scorer, spaces)
        with open_study(folder, [goal.direction for goal in goals], inputs, spaces, search.seed) as study:
            bench = _Bench(request, goals, model, scorer, folder / ".trial.yml")
            try:
                stopped = _try_all(study, bench, console)
            finally:
                bench.recipe.unlink(missing_ok=True)
            if changed := [name for name, content in _branch_inputs(request).items() if content != branches[name]]:
                raise PaftError(
                    f"{folder}: {' and '.join(changed)} changed during the search, so its trials are of different models. "
                    "Delete the folder and search anew once nothing writes them any more."
                )
            items = {goal.task: scorer.items(goal.task) for goal in goals}
            versions = {name: version(name) for name in LIBRARIES}
            outcome = Outcome(request, device, goals, study.finished(), inputs, versions, items)
        _write(outcome, console, stopped)
    if stopped == "interrupted":
        raise KeyboardInterrupt
    return outcome


@dataclass(frozen=True)
class _Bench:
    """What trials are tried on: the recipe's file, the model that takes on its merge, and what scores it."""

    request: SearchRequest
    goals: list[Measure]
    model: FusedModel
    scorer: Scorer
    recipe: Path

    def score(self, proposal: Proposal) -> tuple[list[float] | None, list[float | None]]:
        """The scores of some settings, None if one is no finite number; and their standard errors where there are any."""
        write_recipe(recipe_request(self.request, proposal.method, proposal.options, self.recipe))
        try:
            self.model.become(self.recipe, self.request.search.seed)
        except NotFiniteError:
            return None, [None for _ in self.goals]
        with quiet():
            found = score_model(self.scorer, self.goals, "search.objectives")
        values = [found.scores[goal.name] for goal in self.goals if goal.name in found.scores]
        stderr = [found.stderr.get(goal.name) for goal in self.goals]
        return (values if len(values) == len(self.goals) else None), stderr


def _try_all(study: Study, bench: _Bench, console: Console) -> str:
    """Try settings until there are enough; returns why it stopped."""
    search = bench.request.search
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
            scores, stderr = bench.score(proposal)
            study.tell(proposal, scores, stderr, time.monotonic() - start)
            finished = study.finished()[done]
            console.print(_line(finished, bench.goals), highlight=False, markup=False)
            advance()
    return "done"


def _line(trial: Finished, goals: list[Measure]) -> str:
    named = zip(goals, trial.scores or (), strict=False)
    scores = "  ".join(f"{goal.name} {number(score)}" for goal, score in named) or "no finite score"
    return f"{trial.number:4}  {trial.method:15}  {scores}{'  (defaults)' if trial.is_default else ''}"


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


def _branch_inputs(request: SearchRequest) -> dict[str, str]:
    """Fingerprints of the base and the branches; everything that keeps them from belonging together is said here."""
    problems = [
        problem
        for branch in (request.sft, request.preference)
        for problem in check_belongs(request.base, branch) or check_finite(branch)
    ]
    raise_if_any(list(dict.fromkeys(problems)))
    sft, preference = (open_delta(request.base, branch) for branch in (request.sft, request.preference))
    return {
        "the base model": sft.base.fingerprint,
        "the SFT branch": sft.branch_fingerprint(),
        "the preference branch": preference.branch_fingerprint(),
    }


def _scoring_inputs(
    request: SearchRequest, goals: list[Measure], scorer: Scorer, spaces: Mapping[str, Space]
) -> dict[str, str]:
    """Fingerprints of what else decides the scores, or what is proposed."""
    space = [[name, sorted(space.ranges.items())] for name, space in spaces.items()]
    return {
        **{f"the task {goal.task}": scorer.fingerprint(goal.task) for goal in goals},
        "the objectives": fingerprint(f"{goal.task} {goal.key} {goal.direction}" for goal in goals),
        "the methods or their ranges": fingerprint([json.dumps(space)]),
        "the seed": str(request.search.seed),
        "the limit": str(request.search.limit),
        "the dtype": request.search.dtype,
    }


# --- the model that becomes any merge -----------------------------------------------------------------------------------


class FusedModel:
    """The base model in memory, whose weights become those of any recipe.

    The tensors come from the engine of `axolotl paft merge`, one at a time, so they are the very ones that it would write:
    a random method draws the same masks. Those that no branch changes are copied rather than merged; nothing is written.
    Weights are merged and scored on `device`, scored in `dtype` (torch's names), `batch_size` prompts at once.

    Raises:
        PaftError: The model cannot be loaded, or has no chat template.
    """

    def __init__(self, base: Path, dtype: str, device: str, batch_size: int) -> None:
        with quiet():
            self.lm: HFLM = load(Candidate("base", base), batch_size=batch_size, device=device, dtype=dtype)
        tokenise_once(self.lm)
        self._device = device
        self._parameters = _by_name(self.lm.model)

    def become(self, recipe: Path, seed: int) -> None:
        """Take on the weights that a recipe merges with a seed.

        Raises:
            PaftError: The recipe cannot be merged, or its tensors are not this model's.
        """
        given: set[int] = set()
        for name, tensor in open_fusion(recipe, seed, self._device).tensors():
            parameter = self._parameters.get(name)
            if parameter is None:
                raise PaftError(
                    f"{recipe}: {name} has another name or place once transformers has loaded the model, so merges of this "
                    "architecture cannot be tried in memory. Merge a few recipes with `axolotl paft merge` and score them."
                )
            if parameter.shape != tensor.shape:
                self._resize(tensor, name)
                parameter = self._parameters[name]
            parameter.data.copy_(tensor)
            given.add(parameter.data_ptr())
        # What is left out would keep the weights of an earlier trial.
        if left := [name for name, parameter in self._parameters.items() if parameter.data_ptr() not in given]:
            raise PaftError(f"{recipe}: merges no {some(sorted(left))}, which the model has.")

    def _resize(self, tensor: Tensor, name: str) -> None:
        """A recipe that names a tokenizer drops the padding rows of the vocabulary; so does the model, once and for all."""
        embedding = self.lm.model.get_input_embeddings().weight
        if tensor.shape[1:] != embedding.shape[1:] or tensor.shape[0] == embedding.shape[0]:
            raise PaftError(f"{name}: merged to shape {tuple(tensor.shape)}, which is not the base's.")
        self.lm.model.resize_token_embeddings(tensor.shape[0], mean_resizing=False)
        self._parameters = _by_name(self.lm.model)


def _by_name(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter by each name that a checkpoint may have for it: tied ones have several, and a prefix may be left out."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**{name.removeprefix(prefix): parameter for name, parameter in named.items()}, **named}
