"""What trials are tried on: a base model in memory that becomes any merge, and what scores it; one on each device."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paft_plugin.errors import PaftError, some
from paft_plugin.evaluation.candidates import Candidate, load
from paft_plugin.evaluation.held_out_scores import FOLDER, HeldOutScorer, Kept, summarised
from paft_plugin.evaluation.likelihood import AnswerModel
from paft_plugin.evaluation.results import ArmScore, Measure
from paft_plugin.evaluation.score import score_model
from paft_plugin.evaluation.scorer import Scorer, quiet, tokenise_once
from paft_plugin.fusion.merge import open_fusion
from paft_plugin.fusion.merge.fusion import NotFiniteError
from paft_plugin.fusion.recipe.write import write_recipe
from paft_plugin.search.config import SearchRequest
from paft_plugin.search.report import recipe_request
from paft_plugin.search.space import Options
from paft_plugin.search.validation import Objectives, open_objectives

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

Scored = tuple[list[float] | None, list[float | None]]
"""The scores of some settings, None if one is no finite number; and their standard errors where there are any."""


@dataclass(frozen=True)
class Bench:
    """A model that takes on merges on one device, and what scores it there."""

    request: SearchRequest
    goals: list[Measure]
    model: FusedModel
    scorer: Scorer | None
    """Of lm-eval's tasks, if there are any."""
    rows: HeldOutScorer | None
    """Of held-out rows, if there are any."""
    base: Kept | None
    """What the base itself came to on them."""
    items: dict[str, int]
    """A goal's task → its number of scored items."""
    recipe: Path
    """Where the recipe of a trial is written meanwhile."""

    @classmethod
    def open(cls, request: SearchRequest, objectives: Objectives, device: str, place: int = 0) -> Bench:
        """Load the base on a device, to score it on `objectives`; `place` keeps the files of several benches apart."""
        search = request.search
        tasks, items = objectives.tasks, dict[str, int]()
        model = FusedModel(request.base, search.dtype, device, search.batch_size, chat_template=bool(tasks))
        scorer, rows, base = None, None, None
        if tasks:
            with quiet():
                scorer = Scorer(model.lm, tasks, search.limit)
            items = {name: scorer.items(name) for name in tasks}
        if objectives.rows:
            answering = AnswerModel(model.lm.model, search.batch_size)
            readable, _ = objectives.rows.readable(answering.context)
            rows = HeldOutScorer(answering, model.lm.tokenizer, readable)
            scored, base = rows.score_base()
            counts = summarised(scored).n
            items |= {goal.task: counts[goal.name] for goal in objectives.measures if goal.name in counts}
        recipe = request.folder / f".trial-{place}.yml"
        return cls(request, objectives.measures, model, scorer, rows, base, items, recipe)

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what is scored."""
        of_tasks = [goal for goal in self.goals if not goal.task.startswith(FOLDER)]
        found = {f"the task {goal.task}": self.scorer.fingerprint(goal.task) for goal in of_tasks if self.scorer}
        if self.rows is not None:
            found["the held-out rows"] = self.rows.fingerprint()
        return found

    def score(self, method: str, options: Options, seed: int) -> Scored:
        """Merge by some settings, and score."""
        write_recipe(recipe_request(self.request, method, options, self.recipe))
        try:
            self.model.become(self.recipe, seed)
        except NotFiniteError:
            return None, [None for _ in self.goals]
        finally:
            self.recipe.unlink(missing_ok=True)
        found = [*self._on_tasks(), *self._on_rows()]
        scores = {name: value for one in found for name, value in one.scores.items()}
        errors = {name: error for one in found for name, error in one.stderr.items()}
        values = [scores[goal.name] for goal in self.goals if math.isfinite(scores.get(goal.name, math.nan))]
        return (values if len(values) == len(self.goals) else None), [errors.get(goal.name) for goal in self.goals]

    def _on_tasks(self) -> Iterator[ArmScore]:
        if self.scorer is not None:
            goals = [goal for goal in self.goals if not goal.task.startswith(FOLDER)]
            with quiet():
                yield score_model(self.scorer, goals, "search.objectives")

    def _on_rows(self) -> Iterator[ArmScore]:
        if self.rows is not None and self.base is not None:
            yield summarised(self.rows.score(self.base))


# --- several devices ----------------------------------------------------------------------------------------------------


class Benches:
    """A bench here on the first device, and one in a process of its own on each other one. Open them with `open_benches`."""

    def __init__(self, first: Bench, others: Sequence[ProcessPoolExecutor]) -> None:
        self.first = first
        self._others = others

    def __len__(self) -> int:
        return 1 + len(self._others)

    def score(self, wanted: Sequence[tuple[str, Options, int]]) -> list[Scored]:
        """Score as many settings (method, options, seed) as there are benches, or fewer, all at once."""
        there: list[Future[Scored]] = [
            other.submit(_score_there, *one) for other, one in zip(self._others, wanted[1:], strict=False)
        ]
        here = self.first.score(*wanted[0])
        try:
            return [here, *(future.result() for future in there)]
        except BrokenProcessPool:
            raise PaftError(
                "search.device: a process on one of the devices died (see above; most likely its memory is full). Give fewer "
                "devices."
            ) from None


@contextmanager
def open_benches(request: SearchRequest, objectives: Objectives, devices: Sequence[str]) -> Iterator[Benches]:
    """A bench on each of `devices`; the first takes the `objectives`, which belong to it from then on.

    Raises:
        PaftError: The model cannot be loaded, has no chat template, or the tasks cannot be scored.
    """
    # Merging and scoring seed torch, numpy and random as a whole, so two of them cannot share a process.
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        others = [
            stack.enter_context(
                ProcessPoolExecutor(1, mp_context=spawn, initializer=_open_there, initargs=(request, device, place))
            )
            for place, device in enumerate(devices[1:], start=1)
        ]
        yield Benches(Bench.open(request, objectives, devices[0]), others)


_here: list[Bench] = []
"""In a process of its own: the bench."""


def _open_there(request: SearchRequest, device: str, place: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it decides what Ctrl-C ends
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    _here.append(Bench.open(request, open_objectives(request), device, place))


def _die_with(parent: int) -> None:
    """End this process when its parent is killed, which nothing else would tell it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _score_there(method: str, options: Options, seed: int) -> Scored:
    return _here[0].score(method, options, seed)


# --- the model that becomes any merge -----------------------------------------------------------------------------------


class FusedModel:
    """The base model in memory, whose weights become those of any recipe.

    The tensors come from the engine of `axolotl paft merge`, one at a time, so they are the very ones that it would write:
    a random method draws the same masks. Those that no branch changes are copied rather than merged; nothing is written.
    Weights are merged and scored on `device`, scored in `dtype` (torch's names), `batch_size` prompts at once.

    Raises:
        PaftError: The model cannot be loaded, or lacks the `chat_template` that is asked for.
    """

    def __init__(self, base: Path, dtype: str, device: str, batch_size: int, *, chat_template: bool = True) -> None:
        candidate = Candidate("base", base)
        with quiet():
            self.lm: HFLM = load(
                candidate, batch_size=batch_size, device=device, dtype=dtype, chat_template=chat_template
            )
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
