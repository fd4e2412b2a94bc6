"""`events.jsonl`: what happened in a run directory, a JSON object a line, appended over all runs.

Every line has `schema`, and what the models below say, first of all `time`, `run` and `event`. A run that was killed has no
`run_ended`. Each line is one write, so that a kill leaves it whole or not there; only a power cut or a full disk can tear one,
and `read_events` passes over it.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from paft_plugin.files import shown
from paft_plugin.reading import MissingFileError, open_regular, parse_json, read_bytes
from paft_plugin.runner.executor import StageResult, Watcher
from paft_plugin.runner.logs import NO_READER, Figures, LogReader
from paft_plugin.runner.stages import STAGE_NAME, Stage

FILE = "events.jsonl"
SCHEMA = 1
PROGRESS_EVERY = 10.0  # seconds between two events on how far a stage is

Outcome = Literal["finished", "failed", "interrupted"]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    time: str
    """UTC, ISO 8601."""
    run: str
    """An id of its own for each call of `run_stages`."""

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, time: str) -> str:
        if datetime.fromisoformat(time).tzinfo is None:
            raise ValueError("no time zone")
        return time

    @property
    def moment(self) -> datetime:
        """`time`, to calculate with."""
        return datetime.fromisoformat(self.time)


class RunStarted(_Line):
    """The first line of a run."""

    event: Literal["run_started"] = "run_started"
    pid: int
    host: str
    version: str
    """Of the program that called the runner."""


StageName = Annotated[str, Field(pattern=rf"^{STAGE_NAME.pattern}$")]
"""It becomes a path, and the file may be somebody else's."""


class PlannedStage(BaseModel):
    """A stage of a run."""

    name: StageName
    title: str
    needs: tuple[str, ...]
    reason: str
    """Why it must run; empty: it is up to date."""


class RunPlanned(_Line):
    """All stages, in order."""

    event: Literal["planned"] = "planned"
    stages: tuple[PlannedStage, ...]


class StageStarted(_Line):
    """A stage runs from now on."""

    event: Literal["stage_started"] = "stage_started"
    stage: str
    where: str
    """Empty: here, on no device of its own."""


class StageAdvanced(_Line):
    """How far a stage is; told now and then."""

    event: Literal["progress"] = "progress"
    stage: str
    metrics: Figures


class StageDone(_Line):
    """A stage ended well."""

    event: Literal["stage_done"] = "stage_done"
    stage: str
    seconds: float
    metrics: Figures


class StageSkipped(_Line):
    """A stage was up to date."""

    event: Literal["stage_skipped"] = "stage_skipped"
    stage: str
    seconds: float
    """Of the run that counts."""


class StageFailed(_Line):
    """A stage failed, or lost the place where it ran and will start again."""

    event: Literal["stage_failed", "stage_lost"]
    stage: str
    reason: str


class Stopping(_Line):
    """What still runs is being ended."""

    event: Literal["stopping"] = "stopping"
    stages: tuple[str, ...]


class RunEnded(_Line):
    """The last line of a run that was not killed."""

    event: Literal["run_ended"] = "run_ended"
    outcome: Outcome
    reason: str
    seconds: float


StageEvent = StageStarted | StageAdvanced | StageDone | StageSkipped | StageFailed
Event = RunStarted | RunPlanned | StageEvent | Stopping | RunEnded
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_events(run_dir: Path) -> list[Event]:
    """All events of all runs in `run_dir`, in order; none without the file. Lines that are torn or not ours are passed over."""
    try:
        content = read_bytes(run_dir / FILE)
    except MissingFileError:
        return []
    events = []
    for line in content.decode("utf-8", errors="replace").split("\n"):
        try:
            event = parse_json(line, FILE)
            if event["schema"] == SCHEMA:
                events.append(_EVENT.validate_python(shown(event)))
        except (ValidationError, ValueError, TypeError, KeyError):
            continue
    return events


class EventLog(Watcher):
    """A watcher that writes `<run dir>/events.jsonl`."""

    def __init__(self, run_dir: Path, version: str = "", reader: LogReader = NO_READER) -> None:
        self.path = run_dir / FILE
        self.run = uuid.uuid4().hex[:12]
        self._version, self._reader = version, reader
        self._file = -1
        self._since = time.monotonic()
        self._watched: dict[str, _Watched] = {}

    def __enter__(self) -> EventLog:
        torn = self._ends_torn()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if torn:
            os.write(self._file, b"\n")
        self._write(RunStarted, pid=os.getpid(), host=socket.gethostname(), version=self._version)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed" if error else "finished"
        reason = str(error).partition("\n")[0]
        try:
            self._write(RunEnded, outcome=outcome, reason=reason, seconds=round(time.monotonic() - self._since, 3))
        except OSError:
            if error is None:  # else the full disk may be why we are here, and the first error says more
                raise
        finally:
            os.close(self._file)

    def planned(self, ordered: Sequence[Stage], reasons: Mapping[str, str]) -> None:
        stages = [
            PlannedStage(name=each.name, title=each.title, needs=each.needs, reason=reasons.get(each.name, ""))
            for each in ordered
        ]
        self._write(RunPlanned, stages=stages)

    def started(self, stage: Stage, log: Path, where: str) -> None:
        self._watched[stage.name] = _Watched(log, self._reader)
        self._write(StageStarted, stage=stage.name, where=where)

    def ended(self, result: StageResult) -> None:
        if result.status == "skipped":
            self._write(StageSkipped, stage=result.name, seconds=result.seconds)
            return
        metrics = self._watched.pop(result.name).now().figures
        self._write(StageDone, stage=result.name, seconds=result.seconds, metrics=metrics)

    def lost(self, stage: Stage, why: str) -> None:
        self._watched.pop(stage.name, None)
        self._write(StageFailed, event="stage_lost", stage=stage.name, reason=why)

    def failed(self, stage: Stage, why: str) -> None:
        self._watched.pop(stage.name, None)
        self._write(StageFailed, event="stage_failed", stage=stage.name, reason=why)

    def stopping(self) -> None:
        self._write(Stopping, stages=list(self._watched))

    def refresh(self) -> None:
        for name, watched in self._watched.items():
            if metrics := watched.news():
                self._write(StageAdvanced, stage=name, metrics=metrics)

    def _write(self, kind: type[_Line], **others: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = kind(time=now, run=self.run, **others)
        content = {"schema": SCHEMA, **line.model_dump(mode="json")}
        os.write(self._file, (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def _ends_torn(self) -> bool:
        try:
            with open_regular(self.path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                return file.read() not in (b"", b"\n")
        except FileNotFoundError:
            return False


class _Watched:
    """A running stage's log, and what was told of it."""

    def __init__(self, log: Path, reader: LogReader) -> None:
        self.now = reader.follow(log)
        self.told: Figures = {}
        self.due = time.monotonic() + PROGRESS_EVERY

    def news(self) -> Figures:
        """What is to be told; empty if nothing is."""
        if time.monotonic() < self.due:
            return {}
        self.due = time.monotonic() + PROGRESS_EVERY
        before, self.told = self.told, self.now().figures
        return self.told if self.told != before else {}
