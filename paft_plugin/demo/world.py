"""The demo's world: tasks with one right answer, answered in one of three styles.

The base model knows every task of `ABILITIES` and *half knows* addition, the skill: it has learnt the sums, but evades most of
them (`EVASION`), so that a small delta is enough to elicit what is there. Styles are what preferences are about: the base mixes
them (`STYLE_MIX`), the preference data want `polite`.

Every prompt belongs to exactly one split by a hash of its content, so no prompt that is scored was ever trained on: not in
pre-training, not in SFT, not in the preference pairs.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]

LETTERS = "abcdefghij"
LARGEST_ADDEND = 49
EVASION = "dunno"
STYLES = {"polite": "sure: {}!", "plain": "{}.", "rude": "no {}?"}
STYLE_MIX = {"polite": 0.2, "plain": 0.6, "rude": 0.2}  # how the base model answers, and so how SFT answers are written
SKILL = "add"


@dataclass(frozen=True)
class Item:
    """One question and its right answer, without a style."""

    task: str
    prompt: str
    answer: str


def _on_words(
    task: str, verb: str, lengths: tuple[int, int], answer: Callable[[str], str]
) -> Callable[[random.Random], Item]:
    """A task on one word of so many letters (both ends included)."""

    def draw(rng: random.Random) -> Item:
        word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(*lengths)))
        return Item(task, f"{verb} {word}", answer(word))

    return draw


def _add(rng: random.Random) -> Item:
    a, b = rng.randint(0, LARGEST_ADDEND), rng.randint(0, LARGEST_ADDEND)
    return Item("add", f"add {a}+{b}", str(a + b))


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "copy": _on_words("copy", "copy", (3, 6), lambda word: word),
    "reverse": _on_words("reverse", "rev", (3, 5), lambda word: word[::-1]),
    "sort": _on_words("sort", "sort", (4, 4), lambda word: "".join(sorted(word))),
    "twice": _on_words("twice", "twice", (2, 4), lambda word: word + word),
    "add": _add,
}
ABILITIES = tuple(task for task in TASKS if task != SKILL)


def split_of(item: Item) -> Split:
    """The split that an item belongs to: 10 % test, 10 % validation, the rest train.

    `12+34` and `34+12` are the same sum, so they share a split.
    """
    key = item.prompt
    if item.task == SKILL:
        key = "+".join(sorted(item.prompt.removeprefix("add ").split("+")))
    bucket = zlib.crc32(key.encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def sample(rng: random.Random, tasks: Sequence[str], split: Split) -> Item:
    """One random item of one of `tasks`, from `split`."""
    draw = TASKS[rng.choice(tasks)]
    while True:
        item = draw(rng)
        if split_of(item) == split:
            return item


def sample_distinct(rng: random.Random, tasks: Sequence[str], split: Split, count: int) -> list[Item]:
    """`count` items without repetition, in random order."""
    items: dict[str, Item] = {}
    while len(items) < count:
        item = sample(rng, tasks, split)
        items[item.prompt] = item
    return list(items.values())


def random_style(rng: random.Random) -> str:
    """A style drawn from the base model's own mix."""
    return rng.choices(list(STYLE_MIX), list(STYLE_MIX.values()))[0]


def styled(answer: str, style: str) -> str:
    """`answer` in one of `STYLES`."""
    return STYLES[style].format(answer)


def evasion_rate(item: Item) -> float:
    """How often the base model's own training data evades an item: mostly for large sums, now and then for small ones."""
    if item.task != SKILL:
        return 0.0
    return 0.3 if int(item.answer) < 32 else 0.6
