"""The one exception for what a user can mend, how a command ends with it, and what is made of other libraries' words."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes: a mistake that the user can mend, and Ctrl-C."""


class PaftError(ValueError):
    """One or more mistakes that the user can mend; each says what is wrong, where, and what to do.

    The command line prints them without a traceback and exits with 2.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def raise_if_any(problems: Sequence[str]) -> None:
    """Raise one `PaftError` with all `problems`, if there are any."""
    if problems:
        raise PaftError(problems)


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Add what a `PaftError` inside the block says to `problems`, and go on after the block, to find what else is wrong."""
    try:
        yield
    except PaftError as error:
        problems += error.problems


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def closest(name: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The one of `names` that a misspelt `name` is most like; None if it is less than `likeness` (0 to 1) like any."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=likeness)), None)


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """A sentence that suggests the closest of `names`; `otherwise` if none is close."""
    close = closest(name, names)
    return otherwise if close is None else f"Did you mean {close}?"


def one_line(error: BaseException, most: int | None = None) -> str:
    """What another library's error says, on one line and of at most so many characters; its type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if most is None or len(text) <= most else f"{text[:most]} …"


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says: torch and the hub add paragraphs of advice."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what other libraries log and warn of (mergekit imports them all) from between our lines."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@dataclass
class Findings:
    """Full sentences: what, where, and what to do or whether it matters; each once."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, *texts: str) -> None:
        """Add what is wrong."""
        self.problems += [text for text in dict.fromkeys(texts) if text not in self.problems]

    def warn(self, *texts: str) -> None:
        """Add what surprises, and does not keep anything from going on."""
        self.warnings += [text for text in dict.fromkeys(texts) if text not in self.warnings]

    def take(self, others: Findings, start: str = "") -> None:
        """Add those of somebody else, each behind `start`."""
        self.problem(*(f"{start}{text}" for text in others.problems))
        self.warn(*(f"{start}{text}" for text in others.warnings))
