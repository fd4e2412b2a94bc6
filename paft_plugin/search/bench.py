"""What trials are tried on: a base model in memory that becomes any merge, and what scores it; one on each device."""

from __future__ import annotations

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

import torch
from torch import Tensor

from paft_plugin.errors import PaftError, some
from paft_plugin.evaluation.candidates import Candidate, load_model
from paft_plugin.evaluation.config import EvaluationConfig
from paft_plugin.evaluation.held_out_scores import FOLDER, summarised
from paft_plugin.evaluation.items import ItemScore
from paft_plugin.evaluation.results import ArmScore, Measure
from paft_plugin.evaluation.score import ArmScorer, RowsOfSplit
from paft_plugin.evaluation.scorer import quiet
from paft_plugin.fusion.merge import open_fusion
from paft_plugin.fusion.merge.fusion import NotFiniteError
from paft_plugin.fusion.recipe.write import write_recipe
from paft_plugin.search.config import SearchRequest
from paft_plugin.search.report import recipe_request
from paft_plugin.search.space import Options
from paft_plugin.search.validation import Objectives, open_objectives

Scored = tuple[list[float] | None, list[float | None]]
"""The scores of some settings, None if one is no finite number; and their standard errors where there are any."""


@dataclass(frozen=True)
class Bench:
    """A base model in memory that takes on merges, and what scores it then."""

    model: FusedModel
    scorer: ArmScorer
    notes: tuple[str, ...]
    """On rows that are too long for the model."""

    @classmethod
    def open(cls, base: Path, scorer: ArmScorer, device: str, dtype: str) -> Bench:
        """Load the base on a device; the scorer belongs to it from then on."""
        model = FusedModel(base, dtype, device, chat_template=scorer.asks_in_chat)
        with quiet():
            notes = scorer.take(model.model, model.tokenizer)
        return cls(model, scorer, tuple(notes))

    def score(self, where: str = "evaluation.measures") -> tuple[ArmScore, list[ItemScore]]:
        """What the model comes to as it is now; without a base to compare with, the first one scored is it."""
        with quiet():
            return self.scorer.score(where)


@dataclass(frozen=True)
class TrialBench:
    """A bench on one device that tries the settings of a search."""

    request: SearchRequest
    goals: list[Measure]
    bench: Bench
    items: dict[str, int]
    """A goal's task → its number of scored items."""
    recipe: Path
    """Where the recipe of a trial is written meanwhile."""

    @classmethod
    def open(cls, request: SearchRequest, objectives: Objectives, device: str, place: int = 0) -> TrialBench:
        """Load the base on a device, to score it on `objectives`; `place` keeps the files of several benches apart."""
        search = request.search
        config = EvaluationConfig(
            limit=search.limit, batch_size=search.batch_size, apply_chat_template=request.apply_chat_template
        )
        of_tasks = [goal for goal in objectives.measures if not goal.task.startswith(FOLDER)]
        rows = RowsOfSplit(objectives.rows)
        scorer = ArmScorer(config, of_tasks, objectives.tasks, {"": rows} if rows.rows else {})
        bench = Bench.open(request.base, scorer, device, search.dtype)
        items = {name: scorer.tasks.items(name) for name in objectives.tasks} if scorer.tasks else {}
        if rows.rows:
            counts = summarised(rows.score()).n
            items |= {goal.task: counts[goal.name] for goal in objectives.measures if goal.name in counts}
        return cls(request, objectives.measures, bench, items, request.folder / f".trial-{place}.yml")

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what is scored."""
        scorer = self.bench.scorer
        found = {
            f"the task {goal.task}": scorer.tasks.fingerprint(goal.task) for goal in scorer.measures if scorer.tasks
        }
        for part in scorer.held_out.values():
            if part.scorer is not None:
                found["the held-out rows"] = part.scorer.fingerprint()
        return found

    def score(self, method: str, options: Options, seed: int) -> Scored:
        """Merge by some settings, and score."""
        write_recipe(recipe_request(self.request, method, options, self.recipe))
        try:
            self.bench.model.become(self.recipe, seed)
        except NotFiniteError:
            return None, [None for _ in self.goals]
        finally:
            self.recipe.unlink(missing_ok=True)
        found, _ = self.bench.score("search.objectives")
        values = [found.scores[goal.name] for goal in self.goals if goal.name in found.scores]
        return (values if len(values) == len(self.goals) else None), [
            found.stderr.get(goal.name) for goal in self.goals
        ]


# --- several devices ----------------------------------------------------------------------------------------------------


class Benches:
    """A bench here on the first device, and one in a process of its own on each other one. Open them with `open_benches`."""

    def __init__(self, first: TrialBench, others: Sequence[ProcessPoolExecutor]) -> None:
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
        yield Benches(TrialBench.open(request, objectives, devices[0]), others)


_here: list[TrialBench] = []
"""In a process of its own: the bench."""


def _open_there(request: SearchRequest, device: str, place: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it decides what Ctrl-C ends
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    _here.append(TrialBench.open(request, open_objectives(request), device, place))


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
    Weights are merged and scored on `device`, scored in `dtype` (torch's names).

    Raises:
        PaftError: The model cannot be loaded, or lacks the `chat_template` that is asked for.
    """

    def __init__(self, base: Path, dtype: str, device: str, *, chat_template: bool = True) -> None:
        with quiet():
            self.model, self.tokenizer = load_model(Candidate("base", base), device, dtype, chat_template)
        self._device = device
        self._parameters = _by_name(self.model)

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
        embedding = self.model.get_input_embeddings().weight
        if tensor.shape[1:] != embedding.shape[1:] or tensor.shape[0] == embedding.shape[0]:
            raise PaftError(f"{name}: merged to shape {tuple(tensor.shape)}, which is not the base's.")
        self.model.resize_token_embeddings(tensor.shape[0], mean_resizing=False)
        self._parameters = _by_name(self.model)


def _by_name(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter by each name that a checkpoint may have for it: tied ones have several, and a prefix may be left out."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**{name.removeprefix(prefix): parameter for name, parameter in named.items()}, **named}
