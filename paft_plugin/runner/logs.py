"""What stages' logs tell: how far a stage is, and why one failed."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paft_plugin.reading import open_regular

Figures = Mapping[str, int | float | None]

TAIL_LINES = 15
_CAUSE_LINES = 60  # an error's name may stand well above the last of a traceback's lines
_TAIL_BYTES = 1 << 16
_NEARLY_FULL = 16 << 20  # bytes: with less, a tool may have failed before it could say so
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
GO_ON = "Finished stages are kept: when the cause is mended, run the same command again to go on."
_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)


@dataclass(frozen=True)
class StageProgress:
    """How far a running stage is."""

    words: str = ""
    """For people, in one line; empty: nothing is known."""
    figures: Figures = field(default_factory=dict)
    """The same for machines; `remaining` is in seconds, and shown after the words."""


@dataclass(frozen=True)
class LogReader:
    """What a caller of the runner can read in the logs of its stages; by default, nothing."""

    follow: Callable[[Path], Callable[[], StageProgress]] = lambda _: StageProgress
    """Takes a log that may grow, or not be there yet; what it returns is called again and again for how far the stage is."""
    hints: Callable[[Sequence[str]], list[str]] = lambda _: []
    """What to do, for each well-known cause of a failure that the last lines of a log name."""


NO_READER = LogReader()


def plain(text: str) -> str:
    """`text` without terminal control sequences; of a progress bar that rewrote its line, the last state."""
    lines = []
    for line in _ESCAPES.sub("", text).split("\n"):
        states = [state.rstrip() for state in line.split("\r") if state.strip()]
        lines.append(states[-1] if states else "")
    return "\n".join(lines)


def tail(log: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last non-empty lines of a log, made plain; none when it cannot be read."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in plain(text).split("\n") if line.strip()][-lines:]


def how_it_ended(code: int) -> str:
    """A process's return code (negative: a signal; 128 + n: a wrapper reports signal n) in words."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"failed with exit code {code}"
    said = f"was killed by {name}" if code < 0 else f"failed with exit code {code}, which usually means {name}"
    return said + (" (often: out of memory)" if name == "SIGKILL" else "")


def failure(name: str, title: str, why: str, log: Path, reader: LogReader) -> str:
    """One message for a failed stage: that it failed, `why` (the end of that sentence), what to do, the end of its log."""
    long = tail(log, _CAUSE_LINES)
    parts = [f"Stage {name!r} ({title}) {why}."]
    free = shutil.disk_usage(log.parent).free if log.parent.is_dir() else _NEARLY_FULL
    if any(_DISK_FULL.search(line) for line in long) or free < _NEARLY_FULL:
        parts[0] += f" The disk is full: {size(free)} free at {log.parent.parent}."
    parts += reader.hints(long)
    last = long[-TAIL_LINES:]
    parts.append("Last lines of its log:" + ("".join(f"\n  | {line}" for line in last) if last else " nothing"))
    parts.append(f"Whole log: {log}")
    return "\n".join(parts)


def size(count: int) -> str:
    """Bytes as people write them, in powers of ten like `df -H` and the disk's label."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
