"""The demo's world: tasks with one right answer, answered in one of three styles.

The base model knows words (`PREFERRED`, and one of `UNTOUCHED`), most subtractions, and *half knows* two skills (`SKILLS`): it
has learnt them, but evades most of what is asked (`EVASION`), so that a small delta is enough to elicit what is there. The dial
of their difficulty is the number of digits or letters. Styles are what preferences are about: the base mixes them (`STYLE_MIX`),
the preference data want `polite`. What no branch trains on (`UNTOUCHED`) shows what a delta costs beside what it is for.

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
EVASION = "dunno"
STYLES = {"polite": "sure: {}!", "plain": "{}.", "rude": "no {}?"}
STYLE_MIX = {"polite": 0.2, "plain": 0.6, "rude": 0.2}  # how the base model answers, and so how SFT answers are written
MOST_TOKENS = 18  # of an answer, its style and the end of text included


@dataclass(frozen=True)
class Item:
    """One question and its right answer, without a style; `level` is the dial of its difficulty (digits or letters)."""

    task: str
    prompt: str
    answer: str
    level: int


def _word(rng: random.Random, letters: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(letters))


def _on_words(
    task: str, verb: str, levels: tuple[int, int], answer: Callable[[str], str]
) -> Callable[[random.Random], Item]:
    """A task on one word of so many letters (both ends included)."""

    def draw(rng: random.Random) -> Item:
        word = _word(rng, level := rng.randint(*levels))
        return Item(task, f"{verb} {word}", answer(word), level)

    return draw


def _successor(word: str) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in word)


def _add(rng: random.Random) -> Item:
    level = rng.randint(2, 4)
    a, b = (rng.randrange(10 ** (level - 1), 10**level) for _ in "ab")
    return Item("add", f"add {a}+{b}", str(a + b), level)


def _subtract(rng: random.Random) -> Item:
    b, a = sorted((rng.randrange(200), rng.randrange(200)))
    return Item("subtract", f"sub {a}-{b}", str(a - b), len(str(a)))


def _mix(rng: random.Random) -> Item:
    level = rng.randint(2, 5)
    one, other = _word(rng, level), _word(rng, level)
    return Item("mix", f"mix {one}+{other}", "".join(map("".join, zip(one, other, strict=True))), level)


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "copy": _on_words("copy", "copy", (3, 8), lambda word: word),
    "reverse": _on_words("reverse", "rev", (3, 6), lambda word: word[::-1]),
    "sort": _on_words("sort", "sort", (3, 6), lambda word: "".join(sorted(word))),
    "twice": _on_words("twice", "twice", (2, 5), lambda word: word + word),
    "next": _on_words("next", "next", (2, 5), _successor),
    "subtract": _subtract,
    "add": _add,
    "mix": _mix,
}
SKILLS = ("add", "mix")
PREFERRED = ("copy", "reverse", "sort", "twice")
"""The abilities that preferences are about."""
UNTOUCHED = ("next", "subtract")
"""The abilities that no branch trains on."""


def split_of(item: Item) -> Split:
    """The split that an item belongs to: 10 % test, 10 % validation, the rest train.

    `12+34` and `34+12` are the same sum, so they share a split.
    """
    key = item.prompt
    if item.task == "add":
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
    """How often the base model's own training data evades an item: mostly, but easy ones only now and then."""
    if item.task not in SKILLS:
        return 0.0
    easy = len(item.answer) == 2 if item.task == "add" else item.level == 2
    return 0.3 if easy else 0.6
