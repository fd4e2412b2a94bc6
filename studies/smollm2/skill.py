"""The skill of the study: three families of `reasoning-gym` at a level that the base fails and a short training reaches.

Scored items do not depend on the seed of a training, so that all seeds answer the same ones; none of them is ever trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Literal

Split = Literal["train", "validation", "test", "ood", "long"]
SCORED: tuple[Split, ...] = ("validation", "test", "ood", "long")
Item = Mapping[str, Any]
Dials = Mapping[str, Any]
FAR = 1 << 24
"""A generator's items of seeds s and s + 1 overlap but for one, so seeds lie farther apart than anybody counts."""


def _sum_in_steps(item: Item) -> str:
    terms = item["metadata"]["expression"].split()
    total, steps = int(terms[0]), []
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {after}.")
        total = after
    return " ".join([*steps, f"The answer is {total}."])


def _product_in_steps(item: Item) -> str:
    """Tens and ones of the second factor apart."""
    one, *others = map(int, item["metadata"]["expression"].split(" * "))
    steps = []
    for other in others:
        tens, ones = other // 10 * 10, other % 10
        if tens and ones:
            steps.append(f"{one} * {other} = {one * tens} + {one * ones} = {one * other}.")
        else:
            steps.append(f"{one} * {other} = {one * other}.")
        one *= other
    return " ".join([*steps, f"The answer is {one}."])


def _solved(item: Item) -> str:
    """x + 3 = 5, x - 3 = 2 or 3 - x = 1, on one side; what is left of it on the other."""
    name = item["metadata"]["variable"]
    left, right = item["metadata"]["equation"].split(" = ")
    first, sign, second = left.split()
    number = second if first == name else first
    other = {"+": "-", "-": "+"}[sign]
    step = f"{right} {other} {number}" if first == name or sign == "+" else f"{number} - {right}"
    return f"{name} = {step}. The answer is {item['answer']}."


@dataclass(frozen=True)
class Family:
    """One of the package's generators: how hard it is in each split, and the answer that is taught."""

    level: Dials
    harder: Dials
    longer: Dials | None
    """None where a longer one is the same."""
    taught: Callable[[Item], str]

    def dials(self, split: Split) -> Dials | None:
        """Of a split: the next difficulty out of distribution, more of the same steps in the long one."""
        return {"ood": self.harder, "long": self.longer}.get(split, self.level)


def _between(what: str, least: int, most: int) -> Dials:
    return {f"min_{what}": least, f"max_{what}": most}


_PLUS_OR_MINUS: Dials = {"operators": ("+", "-"), "operators_weights": (0.5, 0.5)}
FAMILIES: Mapping[str, Family] = {
    "chain_sum": Family(
        level={**_between("terms", 2, 3), **_between("digits", 1, 2)},
        harder={**_between("terms", 2, 3), **_between("digits", 3, 3)},
        longer={**_between("terms", 5, 6), **_between("digits", 1, 2)},
        taught=_sum_in_steps,
    ),
    "products": Family(
        level={**_between("terms", 2, 2), **_between("digits", 1, 2)},
        harder={**_between("terms", 2, 2), **_between("digits", 3, 3)},
        longer={**_between("terms", 3, 3), **_between("digits", 1, 2)},
        taught=_product_in_steps,
    ),
    "simple_equations": Family(
        level={**_between("terms", 2, 2), **_between("value", 1, 20), **_PLUS_OR_MINUS},
        harder={**_between("terms", 2, 2), **_between("value", 21, 60), **_PLUS_OR_MINUS},
        longer=None,
        taught=_solved,
    ),
}

ANSWER = r"(-?\d+)(?!.*\d)"
"""What is taken for the answer of any family: the last number."""


def items(family: str, dials: Dials, name: str) -> Iterator[Item]:
    """Different items without end: the same `name`, the same items."""
    import reasoning_gym

    own = random.Random(name).randrange(1 << 20) * FAR
    dataset = reasoning_gym.create_dataset(family, seed=own, size=FAR, **dials)
    seen = set()
    for index in count():
        item = dataset[index]
        if item["question"] not in seen:
            seen.add(item["question"])
            yield item


def scored_items(family: str, sizes: Mapping[Split, int]) -> dict[Split, list[Item]]:
    """Items of each split that is scored, no question twice."""
    found: dict[Split, list[Item]] = {}
    asked: set[str] = set()
    for split in SCORED:
        dials = FAMILIES[family].dials(split)
        if dials is None:
            continue
        fresh = (item for item in items(family, dials, split) if item["question"] not in asked)
        found[split] = list(islice(fresh, sizes[split]))
        asked |= {item["question"] for item in found[split]}
    return found


def training_rows(family: str, size: int, seed: int, scored: Mapping[Split, list[Item]]) -> Iterator[dict[str, Any]]:
    """Rows of chat to train on, none of them a question that is scored."""
    asked = {item["question"] for each in scored.values() for item in each}
    spec = FAMILIES[family]
    fresh = (item for item in items(family, spec.level, f"train {seed}") if item["question"] not in asked)
    for item in islice(fresh, size):
        question = {"role": "user", "content": item["question"].strip()}
        yield {"messages": [question, {"role": "assistant", "content": spec.taught(item)}]}
