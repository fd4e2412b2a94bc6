"""Scores of one model, of which the weights may change: lm-eval's own tasks and metrics, every request built once."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from paft_plugin.errors import quietly
from paft_plugin.evaluation.items import ItemScore
from paft_plugin.evaluation.results import Measure
from paft_plugin.evaluation.tasks import SEED, OpenTask, is_mean
from paft_plugin.files import fingerprint

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

BOOTSTRAP_DRAWS = 100
"""For the standard error of what is no mean (lm-eval's default of 100 000 takes longer than scoring)."""
Numbers = dict[str, float]


@dataclass(frozen=True)
class TaskScore:
    """What one task, or one group as a whole, came to."""

    values: Numbers
    """`metric,filter` → value, as lm-eval reports it."""
    stderr: Numbers
    """`metric,filter` → standard error, where lm-eval has one."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict, compare=False)
    """Task → what lm-eval logs of each item, of each filter."""


class Scorer:
    """Scores the model inside `model` again and again, the same way each time.

    The tasks are this scorer's from now on: another one may be made of them, but then this one is done. `limit` is the most
    items of each task; `apply_chat_template` says whether prompts are put in the tokenizer's chat template.
    """

    def __init__(
        self, model: LM, tasks: Mapping[str, OpenTask], limit: int | None = None, *, apply_chat_template: bool = True
    ) -> None:
        self._model = model
        self._tasks = dict(tasks)
        self._settings = {
            "limit": limit,
            "apply_chat_template": apply_chat_template,
            "fewshot_as_multiturn": apply_chat_template,  # lm-eval's default
        }
        random.seed(SEED)
        for part in self._parts().values():
            # What `simple_evaluate` does before `evaluate`.
            if part.get_config("num_fewshot") is None:
                part.set_config(key="num_fewshot", value=0)
            part.set_fewshot_seed(seed=SEED)
            self._build_once(part)

    def take(self, model: LM) -> None:
        """Score this model from now on: one with the tokenizer of the one before, so that the requests are the same."""
        self._model = model

    def score(self) -> dict[str, TaskScore]:
        """Each task's score of the model as it is now."""
        import numpy as np
        import torch
        from lm_eval.evaluator import evaluate

        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        if detector := sys.modules.get("langdetect.detector_factory"):
            # IFEval asks it for a text's language, and it draws by a generator of its own.
            detector.DetectorFactory.seed = SEED
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval: no process for each core to draw so few samples
        report = evaluate(
            lm=self._model,
            task_dict={key: value for task in self._tasks.values() for key, value in task.tree.items()},
            bootstrap_iters=BOOTSTRAP_DRAWS,
            log_samples=True,
            **self._settings,
        )
        return {
            name: _task_score(report["results"][name], {part: report["samples"][part] for part in task.parts})
            for name, task in self._tasks.items()
        }

    def item_scores(self, measure: Measure, score: TaskScore, *, keep_texts: bool = False) -> list[ItemScore]:
        """What each item came to, in a score of the measure's task; none where the measure is no mean over items."""
        parts = self._tasks[measure.task].parts
        items = [
            item
            for name, samples in score.samples.items()
            if is_mean(parts[name], measure.metric)
            for sample in samples
            if sample["filter"] == measure.filter and measure.metric in sample
            for item in [_item(measure, name, parts[name], sample, keep_texts)]
        ]
        # A group may weigh its tasks, and not their items, alike.
        mean = math.fsum(item.value for item in items) / max(1, len(items))
        return items if math.isclose(mean, score.values[measure.key], rel_tol=1e-9, abs_tol=1e-12) else []

    def items(self, name: str) -> int:
        """How many items of a task are scored."""
        return sum(len({request.doc_id for request in part.instances}) for part in self._tasks[name].parts.values())

    def fingerprint(self, name: str) -> str:
        """Of what a task asks, how it reads the answers, and what it takes for right."""
        asked: list[Any] = []
        for part_name, part in self._tasks[name].parts.items():
            config = part.dump_config()
            asked.append((part_name, {key: config[key] for key in config if key not in ("dataset_kwargs", "metadata")}))
            asked += [
                (request.request_type, request.arguments, request.doc, part.doc_to_target(request.doc))
                for request in part.instances
            ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _parts(self) -> dict[str, Task]:
        return {name: part for task in self._tasks.values() for name, part in task.parts.items()}

    def _build_once(self, part: Task) -> None:
        """Let a task build its requests here, as `evaluate` would; when that asks for them, the answers are forgotten."""
        chat = self._settings["apply_chat_template"]
        type(part).build_all_requests(
            part,
            chat_template=self._model.apply_chat_template if chat else None,
            tokenizer_name=self._model.tokenizer_name if chat else "",
            **self._settings,
        )

        def forget_answers(**_: Any) -> None:
            for request in part.instances:
                request.resps, request.filtered_resps = [], {}

        part.build_all_requests = forget_answers


def _task_score(results: Mapping[str, Any], samples: Mapping[str, Any]) -> TaskScore:
    numbers = {key: float(value) for key, value in results.items() if "," in key and isinstance(value, (int, float))}
    # lm-eval writes `acc,none` and `acc_stderr,none`.
    stderr = {key.replace("_stderr,", ",", 1): value for key, value in numbers.items() if "_stderr," in key}
    return TaskScore({key: value for key, value in numbers.items() if "_stderr," not in key}, stderr, samples)


def _item(measure: Measure, name: str, task: Task, sample: Mapping[str, Any], keep_texts: bool) -> ItemScore:
    chosen = _choice(task, sample, measure.metric)
    answer, probability = chosen or (" | ".join(map(str, sample["filtered_resps"])), None)
    return ItemScore(
        measure=measure.name,
        item=fingerprint([name, str(sample["doc_id"]), sample["doc_hash"]]),
        value=float(sample[measure.metric]),
        probability=probability,
        answer=answer if keep_texts else None,
    )


def _choice(task: Task, sample: Mapping[str, Any], metric: str) -> tuple[str, float] | None:
    """The answer that a metric of a multiple choice takes, and how likely it is among the answers there are."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in ("acc", "acc_norm") or sample[metric] not in (0, 1):
        return None
    choices = [str(choice) for choice in task.doc_to_choice(sample["doc"])]
    scores = [float(response[0]) for response in sample["filtered_resps"][: len(choices)]]
    if metric == "acc_norm":  # by lm-eval's word for it: per character
        scores = [score / max(1, len(choice)) for score, choice in zip(scores, choices, strict=True)]
    best = max(scores)
    if math.isinf(best) or any(map(math.isnan, scores)):
        return None
    return choices[scores.index(best)], 1 / math.fsum(math.exp(score - best) for score in scores)


def tokenise_once(model: HFLM) -> None:
    """Have lm-eval's model remember what each text and each batch of texts comes to: worth its memory if it's scored again."""
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


def share_contexts(model: HFLM) -> None:
    """Have lm-eval's model read the context of several answers once, not with each: most of what a multiple choice costs.

    What has a context of its own, more answers than a batch or too many tokens goes lm-eval's way, and so do answers of one
    token, which it reads together itself, and all of a model whose cache holds anything but keys and values.
    """
    each_alone = model._loglikelihood_tokens

    def loglikelihood_tokens(requests: list[Any], *settings: Any, **named: Any) -> list[tuple[float, bool]]:
        places: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, _) in enumerate(requests):
            places.setdefault(tuple(context), []).append(place)
        found: dict[int, tuple[float, bool]] = {}
        for context, group in places.items():
            answers = [requests[place][2] for place in group]
            fits = len(context) + max(map(len, answers)) <= model.max_length and len(group) <= int(model.batch_size)
            if len({tuple(answer[:-1]) for answer in answers}) > 1 and len(context) > 1 and fits:
                found |= zip(group, _answers_to(context, answers, model), strict=False)
        rest = [place for place in range(len(requests)) if place not in found]
        alone = each_alone([requests[place] for place in rest], *settings, **named) if rest else []
        found |= zip(rest, alone, strict=True)
        return [found[place] for place in range(len(requests))]

    model._loglikelihood_tokens = loglikelihood_tokens


def _answers_to(context: tuple[int, ...], answers: Sequence[Sequence[int]], model: HFLM) -> list[tuple[float, bool]]:
    """Of each answer its log-likelihood, and whether it is the greedy one; nothing where the cache cannot be repeated."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer
    from transformers.cache_utils import LinearAttentionCacheLayerMixin as Recurrent

    network, device = model.model, model.device
    known = inspect.signature(getattr(network, "get_base_model", lambda: network)().forward).parameters
    keep = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    with torch.inference_mode():
        read = network(input_ids=torch.tensor([context[:-1]], device=device), use_cache=True, **keep)
        cache = getattr(read, "past_key_values", None)
        if not isinstance(cache, DynamicCache) or not all(
            isinstance(layer, DynamicLayer) and not isinstance(layer, Recurrent) for layer in cache.layers
        ):
            return []
        cache.batch_repeat_interleave(len(answers))
        # Padded on the right, where no token of an answer looks. A model says what it thinks of a token at the one before it.
        rows = [torch.tensor([context[-1], *answer[:-1]], device=device) for answer in answers]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = network(input_ids=ids, past_key_values=cache, use_cache=True).logits
        said = logits.log_softmax(-1, dtype=model.softmax_dtype)
        found = []
        for answer, row in zip(answers, said, strict=True):
            own, wanted = row[: len(answer)], torch.tensor(answer, device=device)
            found.append((float(own.gather(1, wanted[:, None]).sum()), bool((own.argmax(-1) == wanted).all())))
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's warnings and bars (on stderr), which would be repeated for every score.

    Not stdout: what Ctrl-C is answered with meanwhile goes there.
    """
    with quietly(), redirect_stderr(io.StringIO()):
        yield
