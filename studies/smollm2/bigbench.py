"""What comes from BIG-bench's source archive: answers that people wrote right and wrong, and what no branch should change.

Everything here carries BIG-bench's canary: it goes into folders of its own, is never committed, and only models that are
thrown away are trained on it.
"""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

ARCHIVE = "bigbench==1.0.0"
RETAINED = {
    "goal_step_wikihow/goal_inference": (0.43, 0.25),
    "goal_step_wikihow/step_inference": (0.63, 0.25),
    "similarities_abstraction": (0.67, 0.24),
    "phrase_relatedness": (0.50, 0.25),
    "metaphor_understanding/met2lit": (0.43, 0.25),
    "general_knowledge": (0.30, 0.13),
}
"""Tasks with one right choice of a few → what the base has right of 30 items, and what chance has.

Left out, as too near to chance: social_iqa (.43, .33) and odd_one_out (.27, .21).
"""
QASC = "natural_instructions/subtask042_qasc_incorrect_option_generation"
DIALOGUE = "timedial"
SHORT = 500
"""Characters of a dialogue, at most."""
_QASC = re.compile(r"Fact: .*\nQuestion: (?P<question>.+) \nCorrect Answer: (?P<answer>.+)", re.DOTALL)

Task = Mapping[str, Any]
Row = dict[str, Any]


def read_tasks(archive: Path) -> dict[str, Task]:
    """The tasks that are wanted of the archive, in one pass over it.

    Raises:
        ValueError: One is not there.
    """
    wanted = {*RETAINED, QASC, DIALOGUE}
    found = {}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            parts = PurePosixPath(member.name).parts
            if parts[-1:] != ("task.json",) or "benchmark_tasks" not in parts:
                continue
            name = "/".join(parts[parts.index("benchmark_tasks") + 1 : -1])
            stream = members.extractfile(member) if name in wanted else None
            if stream is not None:
                found[name] = json.load(stream)
    if lost := sorted(wanted - set(found)):
        raise ValueError(f"{archive}: without {', '.join(lost)}.")
    return found


def answer_pairs(task: Task, seed: int) -> list[Row]:
    """Questions of QASC without their facts, the right answer chosen and a wrong one rejected; each once, in random order."""
    draw = random.Random(seed)
    rows: dict[str, Row] = {}
    for example in task["examples"]:
        found = _QASC.fullmatch(example["input"])
        wrong = [each for each in example["target"] if found and each != found["answer"]]
        if found and wrong and found["question"] not in rows:
            rows[found["question"]] = {
                "prompt": found["question"],
                "chosen": found["answer"],
                "rejected": draw.choice(wrong),
            }
    return draw.sample(list(rows.values()), len(rows))


def dialogues(task: Task, size: int, seed: int) -> list[Row]:
    """Short dialogues with their gaps filled by what is right there, each once."""
    texts: dict[str, str] = {}
    for example in task["examples"]:
        (right, *_) = [choice for choice, score in example["target_scores"].items() if score > 0]
        text = example["input"].partition("Context:")[2].strip()
        if len(text) < SHORT:
            texts.setdefault(text, text.replace("<MASK>", right))
    return [{"text": text} for text in random.Random(seed).sample(list(texts.values()), size)]


def choice_rows(task: Task, size: int, seed: int) -> list[Row]:
    """Questions with exactly one right choice, in random order."""
    draw = random.Random(seed)
    rows = []
    for example in task.get("examples", ()):
        scores = example.get("target_scores") or {}
        right = [choice for choice, score in scores.items() if score > 0]
        if len(right) == 1 and len(scores) > 1:
            choices = list(scores)
            draw.shuffle(choices)
            prompt = f"{task.get('task_prefix', '')}{example['input']}".strip()
            rows.append({"prompt": prompt, "choices": choices, "label": choices.index(right[0])})
    draw.shuffle(rows)
    return rows[:size]
