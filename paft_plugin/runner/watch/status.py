"""Where a run stands, from what lies in its folder: the lock, the events, the markers, the logs. Only reads, takes no part."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.errors import PaftError
from paft_plugin.files import JsonFile, inside
from paft_plugin.runner import logs
from paft_plugin.runner.lock import alive, look
from paft_plugin.runner.logs import NO_READER, Figures, LogReader, StageProgress
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.stages import log_path, needing
from paft_plugin.runner.watch.events import (
    FILE,
    Event,
    PlannedStage,
    RunEnded,
    RunPlanned,
    RunStarted,
    StageAdvanced,
    StageDone,
    StageEvent,
    StageFailed,
    StageSkipped,
    StageStarted,
    read_events,
)

RunState = Literal["starting", "running", "ending", "finished", "failed", "interrupted", "killed"]
StageState = Literal["waiting", "running", "stopped", "done", "up to date", "failed", "gone"]
UNDER_WAY: tuple[RunState, ...] = ("starting", "running", "ending")


class StageStatus(BaseModel):
    """Where a stage stands."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    state: StageState
    """`stopped`: the run ended while it was under way; `gone`: it was done, and its marker has been removed since."""
    seconds: float | None
    """How long it took, or has run so far."""
    where: str
    reason: str
    """Why it failed, was lost, or has to run."""
    metrics: Figures
    """How far it is or came."""
    log: str
    """In the run directory."""
    tail: tuple[str, ...]
    """The end of the log of a failed one."""
    words: str = Field("", exclude=True)
    """How far it is or came, for people."""
    failure: str = Field("", exclude=True)
    """All there is to say to people of a failed one."""


class RunStatus(JsonFile):
    """Where a run stands; seconds throughout, and None for what is not known."""

    SCHEMA: ClassVar[int] = 1

    run_dir: Path
    state: RunState
    """`starting`: before its first event; `ending`: it was killed, and processes that it started are still there."""
    pid: int | None
    host: str
    seconds: float | None
    """How long it took, or has run so far."""
    reason: str
    """Why it failed."""
    stages: tuple[StageStatus, ...]

    @property
    def under_way(self) -> bool:
        """Whether processes of the run are still there."""
        return self.state in UNDER_WAY


class StatusReader:
    """Reads a run's folder as often as wanted; logs are read on from where they were.

    Reading raises `PaftError` if there is no run in the folder; `no_run` says what to do then.
    """

    def __init__(self, run_dir: Path, reader: LogReader = NO_READER, no_run: str = "Name another folder.") -> None:
        self.run_dir = Path(os.path.abspath(run_dir))  # noqa: PTH100 - as the run itself names it, links and all
        self._reader, self._no_run = reader, no_run
        self._progress: dict[str, Callable[[], StageProgress]] = {}

    def read(self) -> RunStatus:
        """Where the run stands now."""
        now = datetime.now(UTC)
        held, holder = look(self.run_dir) if self.run_dir.is_dir() else (False, None)
        events = read_events(self.run_dir)
        if not events and not held:
            raise PaftError(f"There is no run in {self.run_dir}: it has no {FILE}. {self._no_run}")
        run = [event for event in events if event.run == events[-1].run]
        began, ended = _first(run, RunStarted), _first(run, RunEnded)
        state = _state(held, holder, began, ended)
        known = began if state != "starting" else None
        return RunStatus(
            run_dir=self.run_dir,
            state=state,
            pid=known.pid if known else holder,
            host=known.host if known else "",
            seconds=_seconds(state, known, ended, now),
            reason=ended.reason if ended and state == "failed" else "",
            stages=self._stages(run, now, going=state in UNDER_WAY) if state != "starting" else (),
        )

    def _stages(self, run: Sequence[Event], now: datetime, going: bool) -> tuple[StageStatus, ...]:
        plan = _first(run, RunPlanned)
        planned = plan.stages if plan else ()
        needs = {each.name: each.needs for each in planned}
        told = [event for event in run if isinstance(event, StageEvent) and not isinstance(event, StageAdvanced)]
        last = {event.stage: event for event in told}
        started = {event.stage: event for event in told if isinstance(event, StageStarted)}
        given_up = {
            other: f"needs {name}, which failed"
            for name, event in last.items()
            if event.event == "stage_failed"
            for other in needing(name, needs)
        }
        found = []
        for each in planned:
            why = given_up.get(each.name, each.reason)
            found.append(self._stage(each, why, last.get(each.name), started.get(each.name), now, going))
        return tuple(found)

    def _stage(
        self,
        planned: PlannedStage,
        why: str,
        last: StageEvent | None,
        started: StageStarted | None,
        now: datetime,
        going: bool,
    ) -> StageStatus:
        name = planned.name
        log = inside(self.run_dir, log_path(self.run_dir, name).relative_to(self.run_dir))
        state = _stage_state(last, going, marked=read_marker(self.run_dir, name) is not None)
        reason = last.reason if isinstance(last, StageFailed) else why if state == "waiting" else ""
        progress = StageProgress() if state in ("waiting", "gone") else self._how_far(name, log)
        failed = state == "failed"
        return StageStatus(
            name=name,
            title=planned.title,
            state=state,
            seconds=_stage_seconds(state, last, started, now),
            where=started.where if started and state == "running" else "",
            reason=reason,
            metrics=progress.figures,
            log=str(log.relative_to(self.run_dir)),
            tail=tuple(logs.tail(log)) if failed else (),
            words=progress.words,
            failure=logs.failure(name, planned.title, reason, log, self._reader) if failed else "",
        )

    def _how_far(self, name: str, log: Path) -> StageProgress:
        if name not in self._progress:
            self._progress[name] = self._reader.follow(log)
        return self._progress[name]()


Kind = TypeVar("Kind", bound=BaseModel)


def _first(run: Sequence[Event], kind: type[Kind]) -> Kind | None:
    return next((event for event in run if isinstance(event, kind)), None)


def _state(held: bool, holder: int | None, began: RunStarted | None, ended: RunEnded | None) -> RunState:
    """From whether the lock is held, by whom it was locked last, and the last run's first and last event."""
    if held:
        if began is None or ended is not None or began.pid != holder:
            return "starting"  # another run than the last that wrote: it has just locked the folder
        here = began.host == socket.gethostname()
        return "ending" if here and not alive(began.pid) else "running"
    return ended.outcome if ended else "killed"


def _seconds(state: RunState, began: RunStarted | None, ended: RunEnded | None, now: datetime) -> float | None:
    if began is None:
        return None
    if ended:
        return ended.seconds
    return (now - began.moment).total_seconds() if state != "killed" else None


def _stage_state(last: StageEvent | None, going: bool, marked: bool) -> StageState:
    """From the last event about a stage, whether the run goes on, and whether the stage has a marker."""
    if isinstance(last, StageDone | StageSkipped):
        return "gone" if not marked else "done" if isinstance(last, StageDone) else "up to date"
    if isinstance(last, StageStarted):
        return "running" if going else "stopped"
    return "failed" if last and last.event == "stage_failed" else "waiting"


def _stage_seconds(
    state: StageState, last: StageEvent | None, started: StageStarted | None, now: datetime
) -> float | None:
    if state == "running" and started:
        return (now - started.moment).total_seconds()
    if state == "failed" and last and started:
        return (last.moment - started.moment).total_seconds()
    return last.seconds if isinstance(last, StageDone | StageSkipped) else None
