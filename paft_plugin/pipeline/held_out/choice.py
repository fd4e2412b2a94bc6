"""Which rows are held out: by a hash of their prompt, so that the order of the data, the machine and other rows do not matter.

A prompt that is held out leaves the training data of all branches, every row that has it. Those that only one row has come first;
others are taken where there are not enough of them, one row each.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from paft_plugin.evaluation.held_out_rows import Split
from paft_plugin.files import fingerprint

MOST, SHARE = 200, 0.1
"""What is held out of a branch unless it is said: the smaller of this number of rows and this share of them."""
FOR_VALIDATION = 4
"""One row for validation to this many for the test."""
FEW = 50
"""Rows for the test, below which they show large differences alone."""
_PUNCTUATION = re.compile(r"[.,;:!?…]+(?=\s|$)|(?<!\w)[\"'“”„‘’`]+|[\"'“”„‘’`]+(?!\w)")


def normalised(prompt: str) -> str:
    """A prompt without what two copies of it may differ in.

    That is case, white space, forms of one character (NFKC), quotation marks around words, punctuation at their ends; `2 + 3`
    and `2 - 3`, `1.5` and `15`, `f(x)` and `fx` stay apart.
    """
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(_PUNCTUATION.sub("", text).split())


@dataclass(frozen=True)
class RowIdentity:
    """A row of a branch's data, as far as it decides what is held out."""

    prompt: str | None
    """Fingerprint of the normalised prompt; None where it is not known."""
    content: str
    """Fingerprint of the whole row."""
    unfit: str = ""
    """Why it cannot be scored; empty if it can."""
    earlier: frozenset[str] = frozenset()
    """Fingerprints of the prompts before the other answers in it that are trained: earlier turns of a conversation."""

    @property
    def prompts(self) -> set[str | None]:
        """All prompts whose answers it teaches."""
        return {self.prompt, *self.earlier}


@dataclass
class Chosen:
    """What is held out of one branch."""

    rows: dict[int, Split] = field(default_factory=dict)
    """Index of a row that is scored → what it is for."""
    wanted: int = 0
    """Rows for the test that were asked for."""
    shared: int = 0
    """Rows that could be scored, but share their prompt with another row of a branch."""
    taken: int = 0
    """How many of those that are scored are such."""

    def count(self, split: Split) -> int:
        return sum(each == split for each in self.rows.values())


def wanted(rows: Sequence[RowIdentity], amount: float | None) -> int:
    """How many of a branch's rows shall be held out for the test; a share is one of its different prompts."""
    prompts = len({row.prompt for row in rows})
    if amount is None:
        return min(MOST, math.ceil(prompts * SHARE))
    return amount if isinstance(amount, int) else math.ceil(prompts * amount)


def choose(branches: Mapping[str, Sequence[RowIdentity]], amounts: Mapping[str, float | None]) -> dict[str, Chosen]:
    """What is held out of each branch: a number or share of its rows for the test, None for the default, and a quarter as many
    for validation. At least half of a branch's rows stay for its training.
    """
    having = Counter(prompt for rows in branches.values() for row in rows for prompt in row.prompts)
    chosen: dict[str, Chosen] = {}
    splits: dict[str, Split] = {}
    for name, rows in branches.items():
        test = wanted(rows, amounts.get(name))
        row_of = _one_of_each_prompt(rows)
        here, spare = Counter(prompt for row in rows for prompt in row.prompts), len(rows) // 2
        taken: list[str] = []
        # Those that one row alone has come first.
        for prompt in sorted(row_of, key=lambda each: (having[each] > 1, fingerprint([each]))):
            if len(taken) == test + math.ceil(test / FOR_VALIDATION):
                break
            if here[prompt] <= spare:
                spare -= here[prompt]
                taken.append(prompt)
        splits |= _split(taken, splits)
        chosen[name] = Chosen(
            rows={row_of[prompt]: splits[prompt] for prompt in taken},
            wanted=test,
            shared=sum(not row.unfit and having[row.prompt] > 1 for row in rows),
            taken=sum(having[prompt] > 1 for prompt in taken),
        )
    return chosen


def _split(prompts: Sequence[str], before: Mapping[str, Split]) -> dict[str, Split]:
    """What each of the prompts is for; what another branch has it for is kept."""
    count = min(math.ceil(len(prompts) / (FOR_VALIDATION + 1)), max(0, len(prompts) - 1))
    ranks = {"validation": 0, "test": 2}
    order = sorted(prompts, key=lambda prompt: (ranks.get(before.get(prompt, ""), 1), fingerprint(["split", prompt])))
    return {prompt: before.get(prompt, "validation" if place < count else "test") for place, prompt in enumerate(order)}


def _one_of_each_prompt(rows: Sequence[RowIdentity]) -> dict[str, int]:
    """Prompt → the index of the row that stands for it."""
    first: dict[str, int] = {}
    for index, row in sorted(enumerate(rows), key=lambda each: each[1].content):
        if row.prompt is not None and not row.unfit:
            first.setdefault(row.prompt, index)
    return first


def choose_all(rows: Sequence[RowIdentity], taught: Iterable[str | None]) -> Chosen:
    """Every row that can be scored and has a prompt that no branch is `taught`."""
    row_of, others = _one_of_each_prompt(rows), set(taught)
    left = [prompt for prompt in row_of if prompt not in others]
    return Chosen(
        rows={row_of[prompt]: split for prompt, split in _split(left, {}).items()},
        wanted=len(rows),
        shared=sum(not row.unfit and row.prompt in others for row in rows),
    )
