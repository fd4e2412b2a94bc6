"""The preference of the study: answers that keep a constraint which lm-eval's IFEval verifiers can check, over ones that don't.

Each answer stands as often on either side: what one prompt wants is the rejected answer to its twin, which asks for another
constraint on the same text. So neither length nor style tells the better answer from the worse, only the prompt does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

Row = dict[str, Any]


@dataclass(frozen=True)
class Constraint:
    """One of IFEval's instructions: how it is asked for, and a text that keeps it."""

    kwargs: Mapping[str, Any]
    ask: str
    keep: Callable[[str], str]

    def verifier(self, name: str) -> Callable[[str], bool]:
        """lm-eval's own check of it."""
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

        check = INSTRUCTION_DICT[name](name)
        check.build_description(**self.kwargs)
        return lambda answer: bool(check.check_following(answer))


CONSTRAINTS: Mapping[str, Constraint] = {
    "punctuation:no_comma": Constraint({}, "Do not use any commas.", lambda text: text.replace(",", "")),
    "change_case:english_lowercase": Constraint({}, "Write all of it in lowercase letters.", str.lower),
    "change_case:english_capital": Constraint({}, "Write all of it in capital letters.", str.upper),
    "startend:quotation": Constraint({}, "Wrap your whole answer in double quotation marks.", '"{}"'.format),
    "startend:end_checker": Constraint(
        {"end_phrase": "That is all."}, "End your answer with the exact phrase: That is all.", "{} That is all.".format
    ),
    "detectable_format:title": Constraint(
        {}, "Begin with a title in double angular brackets, such as <<title>>.", "<<In short>> {}".format
    ),
    "detectable_content:postscript": Constraint(
        {"postscript_marker": "P.S."}, "Add a postscript that starts with P.S.", "{} P.S. Thank you.".format
    ),
    "detectable_format:number_bullet_lists": Constraint(
        {"num_bullets": 2}, "Answer in exactly 2 bullet points that start with *.", lambda text: _bullets(text)
    ),
    "detectable_format:number_highlighted_sections": Constraint(
        {"num_highlights": 1}, "Highlight one part of your answer with *asterisks*.", lambda text: _highlighted(text)
    ),
    "detectable_content:number_placeholders": Constraint(
        {"num_placeholders": 1}, "Use a placeholder in square brackets, such as [name].", "{} Ask [name].".format
    ),
}


def _bullets(text: str) -> str:
    first, rest = text.split(". ", 1)
    return f"* {first}.\n* {rest}"


def _highlighted(text: str) -> str:
    first, rest = text.split(", ", 1)
    return f"*{first}*, {rest}"


# fmt: off
THINGS = (
    "the sea", "a library", "winter", "a bicycle", "the moon", "coffee", "a garden",
    "music", "a train", "bread", "a lighthouse", "rain", "a kitchen", "friendship",
    "a mountain", "a market", "the desert", "a clock", "honey", "a bridge", "snow",
    "an island", "a river", "a holiday", "a school", "chess", "autumn", "an orchestra",
    "a ferry", "cheese", "a museum", "the wind", "a candle", "swimming", "a castle",
    "maps", "a violin", "photography", "tea", "a forest", "a newspaper", "painting",
    "a harbor", "thunder", "a lantern", "cooking", "a village", "a telescope", "a fountain",
    "dancing",
)
# fmt: on
QUESTIONS = (
    "Tell me something about {}.",
    "Describe {} in two sentences.",
    "What do people like about {}?",
    "Explain {} to a child.",
)
OPENINGS = (
    "For many people, {} is part of a good day.",
    "In most places, people know {} well.",
    "As a rule, {} makes us think of home.",
    "At first, {} may seem quite simple.",
)
ENDINGS = (
    "There is always more to learn about it, even for experts.",
    "It has a long history, and it still changes.",
    "Children enjoy it, and so do their parents.",
    "It takes some time, but it is worth the time.",
)
LANGUAGE_SEED = 0
"""Two verifiers ask langdetect whether a text is English, which draws by chance: one pair less moves all behind it."""
Split = Literal["train", "validation", "test"]
ABOUT: Mapping[Split, slice] = {"train": slice(0, 35), "validation": slice(35, 42), "test": slice(42, 50)}
"""What prompts of a split are about: scored things are in no training."""


def pairs(split: Split, size: int, seed: int) -> list[Row]:
    """Rows of preference, twins beside each other, each checked by both verifiers.

    Raises:
        ValueError: There are not so many.
    """
    from langdetect import DetectorFactory

    DetectorFactory.seed = LANGUAGE_SEED
    checks = {name: constraint.verifier(name) for name, constraint in CONSTRAINTS.items()}
    rows = [row for twins in _twins(seed, THINGS[ABOUT[split]]) for row in twins if _holds(row, checks)]
    if len(rows) < size:
        raise ValueError(f"{size} pairs are wanted, and there are {len(rows)}.")
    return rows[:size]


def _twins(seed: int, things: Sequence[str]) -> Iterator[list[Row]]:
    """Two rows each: the same text, two constraints, and either is once the wanted one."""
    draw = random.Random(f"preference {seed}")
    texts = list(product(things, QUESTIONS, OPENINGS, ENDINGS))
    draw.shuffle(texts)
    kinds = list(combinations(CONSTRAINTS, 2))
    for place, (thing, question, opening, ending) in enumerate(texts):
        one, other = draw.sample(kinds[place % len(kinds)], 2)
        text = f"{opening} {ending}".format(thing)
        answers = {name: CONSTRAINTS[name].keep(text) for name in (one, other)}
        yield [
            {
                "constraint": wanted,
                "kwargs": dict(CONSTRAINTS[wanted].kwargs),
                "prompt": f"{question.format(thing)} {CONSTRAINTS[wanted].ask}",
                "chosen": answers[wanted],
                "rejected": answers[unwanted],
                "twin": unwanted,
            }
            for wanted, unwanted in ((one, other), (other, one))
        ]


def _holds(row: Mapping[str, Any], checks: Mapping[str, Callable[[str], bool]]) -> bool:
    """Whether the chosen answer keeps the constraint and the rejected one breaks it; both ways, so that twins stay together."""
    return all(
        checks[name](row["chosen"]) is (name == row["constraint"])
        and checks[name](row["rejected"]) is (name == row["twin"])
        for name in (row["constraint"], row["twin"])
    )


def as_conversations(row: Mapping[str, Any]) -> Row:
    """As `chat_template.argilla` of axolotl reads it."""
    question = {"role": "user", "content": row["prompt"]}
    return {side: [question, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
