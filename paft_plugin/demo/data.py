"""Writes the demo's data: what the two branches train on, what lm-eval scores, and the lm-eval tasks that point at it.

Everything is drawn from `world` with seeded generators, one for each file: the same seed gives the same bytes, a shorter file is
the beginning of a longer one, and the size of one file never changes another.
"""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from paft_plugin.demo import world
from paft_plugin.errors import PaftError
from paft_plugin.files import write_text

SFT_DATA = {"sft": "add", "mix": "mix"}
"""File of demonstrations → the skill that it teaches; the second is for three branches."""
WANTED_STYLE = "polite"
UNWANTED_STYLES = tuple(style for style in world.STYLES if style != WANTED_STYLE)

SCORED: dict[str, Sequence[str]] = {
    "skill": ("add",),
    "mix": ("mix",),
    "words": world.PREFERRED,
    "untouched": world.UNTOUCHED,
    "style": tuple(world.TASKS),
}
"""Measure → the tasks that its items are of."""
SCORED_SPLITS: tuple[world.Split, ...] = ("validation", "test")
MOST_ITEMS = 2000
"""Most items of one measure in one split: half of `untouched` are subtractions, of which the test split has 2 010."""

Row = dict[str, Any]


def write_data(
    directory: Path, seed: int, *, sft_rows: int = 12_800, preference_rows: int = 4_800, items: int = 200
) -> None:
    """Write all data of the demo into `directory`: `sft.jsonl`, `mix.jsonl`, `preference.jsonl`, and in `validation/` and `test/`
    a file of `items` rows for each measure.

    Raises:
        PaftError: `items` is more than a split has, or less than one of each task.
    """
    counts = dict.fromkeys(SCORED, items)
    write_items(directory, seed, dict.fromkeys(SCORED_SPLITS, counts))
    write_training_rows(directory, seed, dict.fromkeys(SFT_DATA, sft_rows), preference_rows)


def write_training_rows(directory: Path, seed: int, sft_rows: Mapping[str, int], preference_rows: int) -> None:
    """Write what branches train on: so many rows into each file of demonstrations, and pairs into `preference.jsonl`."""
    for file, count in sft_rows.items():
        draw = _rng(seed, file)
        _write_rows(directory / f"{file}.jsonl", (sft_row(draw, SFT_DATA[file]) for _ in range(count)))
    draw = _rng(seed, "preference")
    _write_rows(directory / "preference.jsonl", (preference_row(draw) for _ in range(preference_rows)))


def write_items(directory: Path, seed: int, counts: Mapping[world.Split, Mapping[str, int]]) -> None:
    """Write what is scored: split → measure → items, each a file in the split's folder.

    Raises:
        PaftError: Items are more than a split has, or less than one of each task.
    """
    for items in dict.fromkeys(items for measures in counts.values() for items in measures.values()):
        if not len(world.TASKS) <= items <= MOST_ITEMS:
            raise PaftError(f"items={items}: choose {len(world.TASKS)} to {MOST_ITEMS} scored items a measure")
    for split, measures in counts.items():
        for measure, items in measures.items():
            asked = _balanced(_rng(seed, f"{split} {measure}"), SCORED[measure], split, items)
            _write_rows(directory / split / f"{measure}.jsonl", map(vars, asked))


def _rng(seed: int, file: str) -> random.Random:
    return random.Random(f"{seed} {file}")


def write_tasks(
    directory: Path,
    items_directory: Path,
    split: world.Split = "test",
    suffix: str = "",
    measures: Collection[str] = tuple(SCORED),
) -> None:
    """Write lm-eval's task files (`--include_path directory`) for the scored items of a split, in `items_directory`.

    `suffix` ends the names of the tasks. The files name absolute paths, because lm-eval resolves relative ones against wherever
    it is started. `datasets` caches in `cache` beside `directory`: in the run, so that it never reads another run's rows, but
    not among its inputs.
    """
    items_directory = items_directory.resolve()
    cache = directory.resolve().with_name("cache")
    for template in resources.files("paft_plugin.demo").joinpath("tasks").iterdir():
        task = template.name.removesuffix(".yaml")
        measure = task.removeprefix("paft_")
        if template.name.endswith(".yaml") and measure in measures:
            filled = Template(template.read_text(encoding="utf-8")).substitute(
                task=f"{task}{suffix}",
                items=_yaml_string(glob.escape(str(items_directory / f"{measure}.jsonl"))),
                cache=_yaml_string(str(cache)),
                split=split,
            )
            write_text(directory / f"{task}{suffix}.yaml", filled)


def _question(item: world.Item) -> dict[str, str]:
    return {"role": "user", "content": item.prompt}


def _reply(item: world.Item, style: str) -> dict[str, str]:
    return {"role": "assistant", "content": world.styled(item.answer, style)}


def sft_row(rng: random.Random, task: str) -> Row:
    """One demonstration: a right answer in the base's own mix of styles (plain ones alone would teach against the preference)."""
    item = world.sample(rng, [task], "train")
    return {"messages": [_question(item), _reply(item, world.random_style(rng))]}


def preference_row(rng: random.Random) -> Row:
    """One pair of right answers, polite over not.

    `question` is the prompt for axolotl's DPO strategy `chat_template.default` (`field_messages: question`); `chosen` and
    `rejected` are whole conversations as ORPO's `chat_template.argilla` wants them, of which DPO's takes the last turn. A column
    `messages` would make TRL's test for conversational data depend on Python's hash seed.
    """
    item = world.sample(rng, world.PREFERRED, "train")
    question = _question(item)
    return {
        "question": [question],
        "chosen": [question, _reply(item, WANTED_STYLE)],
        "rejected": [question, _reply(item, rng.choice(UNWANTED_STYLES))],
    }


def _balanced(rng: random.Random, tasks: Sequence[str], split: world.Split, count: int) -> list[world.Item]:
    """`count` different items, as many of one task as of another (give or take one), in random order."""
    items = [
        item
        for index, task in enumerate(tasks)
        for item in world.sample_distinct(rng, [task], split, (count + index) // len(tasks))
    ]
    rng.shuffle(items)
    return items


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _yaml_string(text: str) -> str:
    return json.dumps(text)  # a JSON string is a YAML one, whatever characters a path has
