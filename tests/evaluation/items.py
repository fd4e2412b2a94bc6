"""Hand-made items small enough to know every score, items made at random, and the tasks that ask them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.demo.configs import QUICK_DEMO, paft_yml
from paft_plugin.evaluation.config import EvaluationConfig
from paft_plugin.evaluation.results import ArmScore
from paft_plugin.evaluation.score import score_with_items
from paft_plugin.evaluation.scorer import Scorer
from paft_plugin.evaluation.tasks import open_measures

SKILL = [("add 1+2", "3"), ("add 10+2", "12"), ("add 20+31", "51"), ("add 4+4", "8")]
RETAINED = [("copy", "copy abc", "abc"), ("copy", "copy hijab", "hijab"), ("sort", "sort dcba", "abcd")]
STYLE = [
    ("add", "add 2+2", "4"),
    ("copy", "copy ab", "ab"),
    ("twice", "twice ab", "abab"),
    ("reverse", "rev abcd", "dcba"),
]
# Of very different lengths, so that even a random model likes some of the chosen ones better.
PREFERENCE = [
    ("copy ab", "ab.", "no ababab?"),
    ("copy abc", "sure: abc!", "c."),
    ("twice d", "dd.", "sure: dddd!"),
    ("twice ij", "sure: ijij!", "no ijij?"),
    ("copy ghij", "g.", "ghij."),
    ("copy face", "no face?", "face."),
]
MEASURES = {
    "paft_skill": {"name": "skill"},
    "paft_preference": {"name": "preference"},
    "paft_style": {"name": "style"},
    "paft_words": {"name": "retained"},
}
ITEMS = 24


def demo_config(tasks: Path, **changes: Any) -> EvaluationConfig:
    """The demo's evaluation with `MEASURES`, and tasks elsewhere; keyword arguments replace keys."""
    section = yaml.safe_load(paft_yml(QUICK_DEMO))["evaluation"]
    return EvaluationConfig.model_validate({**section, "tasks": tasks, "measures": MEASURES, **changes})


def demo_score(model: Any, tasks: Path) -> ArmScore:
    """What lm-eval's `model` scores on the demo's measures."""
    config = demo_config(tasks)
    measures, opened = open_measures(config.measures, config.tasks)
    return score_with_items(Scorer(model, opened), measures)[0]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_items(seed: int, count: int = ITEMS) -> list[dict[str, Any]]:
    """Prompts with two answers of the same length, so that a random model is of two minds."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice("abcdefghij") for _ in range(4))

    return [{"prompt": f"copy {word()}", "answers": [word(), word()], "right": rng.randrange(2)} for _ in range(count)]


def make_preference_task(folder: Path, items: Path) -> None:
    """How often the chosen one of two answers is likelier, with their end-of-text token.

    The chosen one comes second because lm-eval's argmax takes the first of equals: neither a tie nor a model full of NaN wins.
    """
    choices = "{{[rejected + '</s>', chosen + '</s>']}}"
    make_task(folder, "paft_preference", items, "test", doc_to_choice=choices, doc_to_target=1)


def make_task(folder: Path, name: str, items: Path, split: str = "validation", **more: Any) -> None:
    """One lm-eval task on a file of items; `more` goes into it as it is."""
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(items)}, "cache_dir": str(folder.with_name("cache"))},
        f"{split}_split": split,
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "answers",
        "doc_to_target": "right",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
