"""Scores of one model whose weights change: lm-eval's own tasks and metrics, but every request is built and tokenised once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

SEED = 0
Numbers = dict[str, float]


@dataclass(frozen=True)
class TaskScore:
    """What one task came to."""

    values: Numbers
    """`metric,filter` → value, as lm-eval reports it."""
    stderr: Numbers
    """`metric,filter` → standard error, of those that are means over the items."""


class Scorer:
    """Scores the model inside `model` again and again, the same way each time.

    Args:
        model: lm-eval's, around the model.
        tasks: lm-eval's, by name.
        limit: Items of each task at most.
    """

    def __init__(self, model: HFLM, tasks: Mapping[str, ConfigurableTask], limit: int | None = None) -> None:
        self._model = model
        self._tasks = dict(tasks)
        self._limit = limit
        _tokenise_once(model)
        for task in self._tasks.values():
            # What `simple_evaluate` does before `evaluate`.
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
            with quiet():
                _build_once(task, model, limit)

    def score(self) -> dict[str, TaskScore]:
        """Each task's score of the model as it is now."""
        import numpy as np
        import torch
        from lm_eval.evaluator import evaluate

        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        with quiet():
            report = evaluate(
                lm=self._model,
                task_dict=dict(self._tasks),
                limit=self._limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
            )
        return {name: _task_score(report["results"][name], report["samples"][name]) for name in self._tasks}

    def items(self, name: str) -> int:
        """How many items of a task are scored."""
        return len({request.doc_id for request in self._tasks[name].instances})

    def fingerprint(self, name: str) -> str:
        """Of what a task asks, how it reads the answers, and what it takes for right."""
        task = self._tasks[name]
        config = {key: value for key, value in task.dump_config().items() if key not in ("dataset_kwargs", "metadata")}
        asked = [
            (request.request_type, request.arguments, request.doc, task.doc_to_target(request.doc))
            for request in task.instances
        ]
        return hashlib.sha256(json.dumps([config, asked], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _task_score(results: Mapping[str, Any], samples: list[dict[str, Any]]) -> TaskScore:
    values = {
        key: float(value)
        for key, value in results.items()
        if "," in key and "_stderr," not in key and isinstance(value, (int, float))
    }
    stderr = {}
    for key, value in values.items():
        metric, _, name = key.partition(",")
        scores = [sample.get(metric) for sample in samples if sample["filter"] == name]
        error = _stderr_of_mean(scores, value)
        if error is not None:
            stderr[key] = error
    return TaskScore(values, stderr)


def _stderr_of_mean(scores: list[Any], value: float) -> float | None:
    """s/√n of the items' scores, if `value` is their mean; lm-eval's bootstrap of other metrics takes longer than scoring."""
    if len(scores) < 2 or not all(isinstance(score, (bool, int, float)) for score in scores):
        return None
    count, mean = len(scores), sum(scores) / len(scores)
    if abs(mean - value) > 1e-9 * max(1.0, abs(value)):
        return None
    return float((sum((score - mean) ** 2 for score in scores) / (count - 1) / count) ** 0.5)


def _build_once(task: ConfigurableTask, model: HFLM, limit: int | None) -> None:
    """Let a task build its requests here, as `evaluate` would; when that asks for them, the answers are forgotten."""
    task.build_all_requests(
        limit=limit,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=model.apply_chat_template,
        tokenizer_name=model.tokenizer_name,
    )

    def forget_answers(**_: Any) -> None:
        for request in task.instances:
            request.resps, request.filtered_resps = [], {}

    task.build_all_requests = forget_answers


def _tokenise_once(model: HFLM) -> None:
    """Remember what each text and each batch of texts comes to."""
    encode, encode_batch = model.tok_encode, model.tok_batch_encode
    texts: dict[Any, list[int]] = {}
    batches: dict[Any, tuple[Tensor, Tensor]] = {}

    def tok_encode(string: str, *settings: Any, **named: Any) -> list[int]:
        key = (string, settings, tuple(sorted(named.items())))
        if key not in texts:
            texts[key] = encode(string, *settings, **named)
        return list(texts[key])

    def tok_batch_encode(strings: list[str], *settings: Any, **named: Any) -> tuple[Tensor, Tensor]:
        key = (tuple(strings), settings, tuple(sorted(named.items())))
        if key not in batches:
            batches[key] = encode_batch(strings, *settings, **named)
        ids, mask = batches[key]
        return ids.clone(), mask.clone()

    model.tok_encode, model.tok_batch_encode = tok_encode, tok_batch_encode


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's warnings and bars (on stderr), which would be repeated for every score."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
