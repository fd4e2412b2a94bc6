"""`events.jsonl`: what happened in a run directory, a JSON object a line, appended over all runs.

Every line has `schema`, `time` (UTC, ISO 8601), `run` (an id of its own for each call of `run_stages`) and `event`:

| event | and |
|---|---|
| `run_started` | `pid`, `host`, `version` |
| `planned` | `stages`: `name`, `title`, `needs`, `reason` (why it must run; empty: up to date) |
| `stage_started` | `stage`, `where` |
| `progress` | `stage`, `metrics`: `step`, `total`, `remaining` (seconds), `loss`, `lambda`, `sparsity@…`, as far as known |
| `stage_done` | `stage`, `seconds`, `metrics` |
| `stage_skipped` | `stage`, `seconds` (of the run that counts) |
| `stage_failed`, `stage_lost` | `stage`, `reason` |
| `stopping` | `stages`: those that are being ended |
| `run_ended` | `outcome`: `finished`, `failed` or `interrupted`; `reason`, `seconds` |

A run that was killed has no `run_ended`. Each line is one write, so that a kill leaves it whole or not there; only a power cut or
a full disk can tear one, and `read_events` passes over it.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from paft_plugin import __version__
from paft_plugin.inspection.training_log import Follower, Training
from paft_plugin.runner.stages import Stage
from paft_plugin.runner.watch.watcher import StageResult

FILE = "events.jsonl"
SCHEMA = 1
PROGRESS_EVERY = 10.0  # seconds between two events on one training


class EventLog:
    """A watcher that writes `<run dir>/events.jsonl`."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / FILE
        self.run = uuid.uuid4().hex[:12]
        self._file = -1
        self._since = time.monotonic()
        self._trainings: dict[str, _Watched] = {}

    def __enter__(self) -> EventLog:
        torn = self._ends_torn()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if torn:
            os.write(self._file, b"\n")
        self._write("run_started", pid=os.getpid(), host=socket.gethostname(), version=__version__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        outcome = "finished" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
        reason = str(error).partition("\n")[0]
        try:
            self._write("run_ended", outcome=outcome, reason=reason, seconds=_round(time.monotonic() - self._since))
        except OSError:
            if error is None:  # else the full disk may be why we are here, and the first error says more
                raise
        finally:
            os.close(self._file)

    def planned(self, ordered: Sequence[Stage], reasons: Mapping[str, str]) -> None:
        """All stages of the run, and why some of them must run."""
        stages = [
            {"name": stage.name, "title": stage.title, "needs": stage.needs, "reason": reasons.get(stage.name, "")}
            for stage in ordered
        ]
        self._write("planned", stages=stages)

    def started(self, stage: Stage, log: Path, where: str) -> None:
        """`stage` runs from now on."""
        self._trainings[stage.name] = _Watched(log)
        self._write("stage_started", stage=stage.name, where=where)

    def ended(self, result: StageResult) -> None:
        """A stage is through."""
        if result.status == "skipped":
            self._write("stage_skipped", stage=result.name, seconds=result.seconds)
            return
        training = self._trainings.pop(result.name).follower.update()
        self._write("stage_done", stage=result.name, seconds=result.seconds, metrics=summary(training))

    def lost(self, stage: Stage, why: str) -> None:
        """The place where `stage` ran is gone."""
        self._trainings.pop(stage.name, None)
        self._write("stage_lost", stage=stage.name, reason=why)

    def failed(self, stage: Stage, why: str) -> None:
        """`stage` failed."""
        self._trainings.pop(stage.name, None)
        self._write("stage_failed", stage=stage.name, reason=why)

    def stopping(self) -> None:
        """What still runs is being ended."""
        self._write("stopping", stages=list(self._trainings))

    def refresh(self) -> None:
        """Note how far trainings are, those that are due and have gone on."""
        for name, watched in self._trainings.items():
            if metrics := watched.news():
                self._write("progress", stage=name, metrics=metrics)

    def _write(self, event: str, **others: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        content = {"schema": SCHEMA, "time": now, "run": self.run, "event": event, **others}
        os.write(self._file, (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def _ends_torn(self) -> bool:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                return file.read() not in (b"", b"\n")
        except FileNotFoundError:
            return False


class _Watched:
    """A running stage's log, and what was told of it."""

    def __init__(self, log: Path) -> None:
        self.follower = Follower(log)
        self.told: dict[str, float | None] = {}
        self.due = time.monotonic() + PROGRESS_EVERY

    def news(self) -> dict[str, float | None]:
        """What is to be told; empty if nothing is."""
        if time.monotonic() < self.due:
            return {}
        self.due = time.monotonic() + PROGRESS_EVERY
        before, self.told = self.told, summary(self.follower.update())
        return self.told if self.told != before else {}


def summary(training: Training) -> dict[str, float | None]:
    """How far a training is, for machines; a loss that is no number is None. Empty before its first step."""
    if not training.total:
        return {}
    found: dict[str, float | None] = {"step": training.step, "total": training.total}
    if training.remaining is not None:
        found["remaining"] = training.remaining
    if training.loss is not None:
        found["loss"] = training.loss if math.isfinite(training.loss) else None
    if training.strength is not None:
        found["lambda"] = training.strength
    if training.sparsity is not None:
        threshold, share = training.sparsity
        found[f"sparsity@{threshold}"] = share
    return found


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of all runs in `run_dir`, in order; none without the file. Lines that are torn or not ours are passed over."""
    try:
        content = (run_dir / FILE).read_bytes()
    except FileNotFoundError:
        return []
    events = []
    for line in content.decode("utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("schema") == SCHEMA and event.keys() >= {"time", "run", "event"}:
            events.append(event)
    return events


def _round(seconds: float) -> float:
    return round(seconds, 3)
