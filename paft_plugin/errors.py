"""The one exception for what a user can mend, how a command ends with it or by a signal, and other libraries' errors."""

from __future__ import annotations

import difflib
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes: a mistake that the user can mend, and Ctrl-C."""


class EndedBySignal(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: what cleans up after the first cleans up after all of them."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        """As shells have it: 130, 143 or 129."""
        super().__init__(signal.Signals(signum).name)


@contextmanager
def signals_noted(signals: Iterable[signal.Signals], note: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """For the time of the context `note` hears of these signals; of those that are ignored nobody does.

    Ignored they are under `nohup`, or in a shell's background job; and handlers can be set in the main thread alone.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in signals:
            handler = signal.getsignal(signum)
            if handler not in (None, signal.SIG_IGN):
                before[signum] = handler
                signal.signal(signum, note)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `EndedBySignal`, as Ctrl-C raises: once, so that a second one does not cut the clean-up short."""
    raised = threading.Event()

    def end(signum: int, _frame: FrameType | None) -> None:
        if not raised.is_set():
            raised.set()
            raise EndedBySignal(signum)

    with signals_noted((signal.SIGTERM, signal.SIGHUP), end):
        yield


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with what a terminal would obey, or could not print, as an escape: names come out of the files of others."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class PaftError(ValueError):
    """One or more mistakes that the user can mend; each says what is wrong, where, and what to do.

    The command line prints them without a traceback and exits with 2.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [printable(text) for text in ([problems] if isinstance(problems, str) else problems)]
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


@contextmanager
def as_written(what: object, remedy: str) -> Iterator[None]:
    """Make a `PaftError` that names `what` of whatever a file with values of wrong kinds makes of the block, which reads it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, PaftError):
            raise
        said = f"{type(error).__name__}: {one_line(error, 200)}"
        raise PaftError(f"{what}: something in it is of a wrong kind ({said}). {remedy}") from None


def print_warnings(lines: Iterable[str]) -> None:
    """Show each line on standard error, as a warning."""
    for line in lines:
        print(f"Warning: {line}", file=sys.stderr)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def closest(name: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The first of `names` that a misspelt `name` is most like; None if it is less than `likeness` (0 to 1) like any."""
    known = list(names)
    close = difflib.get_close_matches(name, known, cutoff=likeness)
    ratios = [difflib.SequenceMatcher(None, one, name).ratio() for one in close]
    return min(
        (one for one, ratio in zip(close, ratios, strict=True) if ratio == ratios[0]), key=known.index, default=None
    )


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
        self.problems += [text for text in dict.fromkeys(map(printable, texts)) if text not in self.problems]

    def warn(self, *texts: str) -> None:
        """Add what surprises, and does not keep anything from going on."""
        self.warnings += [text for text in dict.fromkeys(map(printable, texts)) if text not in self.warnings]

    def take(self, others: Findings, start: str = "") -> None:
        """Add those of somebody else, each behind `start`."""
        self.problem(*(f"{start}{text}" for text in others.problems))
        self.warn(*(f"{start}{text}" for text in others.warnings))


def run_request(arguments: Sequence[str], module: str, work: Callable[[Path], None]) -> int:
    """The exit code of `python -m MODULE REQUEST`, which does `work` on the request's file: 2 for a user's mistake."""
    if len(arguments) != 1:
        print(f"Usage: python -m {module} REQUEST", file=sys.stderr)
        return BAD_INPUT
    try:
        work(Path(arguments[0]))
    except PaftError as error:
        print("\n".join(f"Error: {problem}" for problem in error.problems), file=sys.stderr)
        return BAD_INPUT
    return 0
