"""Where a run stands, from what lies in its folder: the lock, the events, the markers, the logs. Only reads, takes no part."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast

from paft_plugin.errors import PaftError
from paft_plugin.inspection.training_log import Follower, Training
from paft_plugin.runner import logs
from paft_plugin.runner.lock import alive, look
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.stages import log_path, needing
from paft_plugin.runner.watch.events import read_events, summary

SCHEMA = 1
RunState = Literal["starting", "running", "ending", "finished", "failed", "interrupted", "killed"]
StageState = Literal["waiting", "running", "stopped", "done", "up to date", "failed", "gone"]
UNDER_WAY: tuple[RunState, ...] = ("starting", "running", "ending")


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands."""

    name: str
    title: str
    state: StageState
    """`stopped`: the run ended while it was under way; `gone`: it was done, and its marker has been removed since."""
    seconds: float | None
    """How long it took, or has run so far."""
    where: str
    reason: str
    """Why it failed, was lost, or has to run."""
    training: Training
    log: Path
    tail: tuple[str, ...]
    """The end of the log of a failed one."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    run_dir: Path
    state: RunState
    """`starting`: before its first event; `ending`: it was killed, and processes that it started are still there."""
    pid: int | None
    host: str
    seconds: float | None
    """How long it took, or has run so far; None if that is not known."""
    reason: str
    """Why it failed."""
    stages: tuple[StageStatus, ...]

    @property
    def under_way(self) -> bool:
        """Whether processes of the run are still there."""
        return self.state in UNDER_WAY


class StatusReader:
    """Reads a run's folder as often as wanted; logs are read on from where they were.

    Raises:
        PaftError: When reading, if there is no run in the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(os.path.abspath(run_dir))  # noqa: PTH100 - as the run itself names it, links and all
        self._followers: dict[str, Follower] = {}

    def read(self) -> RunStatus:
        """Where the run stands now."""
        now = datetime.now(timezone.utc)
        held, holder = look(self.run_dir) if self.run_dir.is_dir() else (False, None)
        events = read_events(self.run_dir)
        if not events and not held:
            raise PaftError(
                f"There is no run in {self.run_dir}: it has no events.jsonl. Name the output_dir of a paft.yml."
            )
        run = [event for event in events if event["run"] == events[-1]["run"]]
        began = next((event for event in run if event["event"] == "run_started"), None)
        ended = next((event for event in run if event["event"] == "run_ended"), None)
        state = _state(held, holder, began, ended)
        stages = self._stages(run, now, going=state in UNDER_WAY) if state != "starting" else ()
        host, pid = (str(began["host"]), int(began["pid"])) if began and state != "starting" else ("", holder)
        reason = str(ended["reason"]) if ended and state == "failed" else ""
        return RunStatus(self.run_dir, state, pid, host, _seconds(state, began, ended, now), reason, stages)

    def _stages(self, run: list[dict[str, Any]], now: datetime, going: bool) -> tuple[StageStatus, ...]:
        planned: list[dict[str, Any]] = next((event["stages"] for event in run if event["event"] == "planned"), [])
        needs = {each["name"]: each["needs"] for each in planned}
        last = {event["stage"]: event for event in run if "stage" in event and event["event"] != "progress"}
        started = {event["stage"]: event for event in run if event["event"] == "stage_started"}
        given_up = {
            other: f"needs {name}, which failed"
            for name, event in last.items()
            if event["event"] == "stage_failed"
            for other in needing(name, needs)
        }
        return tuple(
            self._stage(
                each | {"reason": given_up.get(each["name"], each["reason"])},
                last.get(each["name"]),
                started.get(each["name"]),
                now,
                going,
            )
            for each in planned
        )

    def _stage(
        self,
        planned: dict[str, Any],
        last: dict[str, Any] | None,
        started: dict[str, Any] | None,
        now: datetime,
        going: bool,
    ) -> StageStatus:
        name, log = str(planned["name"]), log_path(self.run_dir, planned["name"])
        state = _stage_state(last, going, marked=read_marker(self.run_dir, name) is not None)
        seconds = last.get("seconds") if last else None
        if state == "running" and started:
            seconds = (now - _time(started)).total_seconds()
        elif state in ("failed", "stopped") and started and last and last is not started:
            seconds = (_time(last) - _time(started)).total_seconds()
        reason = str((last or {}).get("reason") or (planned["reason"] if state == "waiting" else ""))
        trained = state not in ("waiting", "gone")
        training = self._followers.setdefault(name, Follower(log)).update() if trained else Training()
        tail = tuple(logs.tail(log)) if state == "failed" else ()
        where = str(started["where"]) if started and state == "running" else ""
        return StageStatus(name, str(planned["title"]), state, seconds, where, reason, training, log, tail)


def _state(held: bool, holder: int | None, began: dict[str, Any] | None, ended: dict[str, Any] | None) -> RunState:
    """From whether the lock is held, by whom it was locked last, and the last run's first and last event."""
    if held:
        if began is None or ended is not None or began["pid"] != holder:
            return "starting"  # another run than the last that wrote: it has just locked the folder
        here = began["host"] == socket.gethostname()
        return "ending" if here and not alive(int(began["pid"])) else "running"
    return cast(RunState, ended["outcome"]) if ended else "killed"


def _stage_state(last: dict[str, Any] | None, going: bool, marked: bool) -> StageState:
    """From the last event about a stage, whether the run goes on, and whether the stage has a marker."""
    event = last["event"] if last else ""
    if event in ("stage_done", "stage_skipped"):
        return "gone" if not marked else "done" if event == "stage_done" else "up to date"
    if event == "stage_failed":
        return "failed"
    if event == "stage_started":
        return "running" if going else "stopped"
    return "waiting"


def _seconds(
    state: RunState, began: dict[str, Any] | None, ended: dict[str, Any] | None, now: datetime
) -> float | None:
    if began is None or state == "starting":
        return None
    if ended:
        return float(ended["seconds"])
    return (now - _time(began)).total_seconds() if state != "killed" else None


def _time(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(event["time"]))


def as_json(status: RunStatus) -> dict[str, Any]:
    """For machines; seconds, and None for what is not known."""
    return {
        "schema": SCHEMA,
        "run_dir": str(status.run_dir),
        "state": status.state,
        "pid": status.pid,
        "host": status.host,
        "seconds": status.seconds,
        "reason": status.reason,
        "stages": [
            {
                "name": stage.name,
                "title": stage.title,
                "state": stage.state,
                "seconds": stage.seconds,
                "where": stage.where,
                "reason": stage.reason,
                "metrics": summary(stage.training),
                "log": str(stage.log.relative_to(status.run_dir)),
                "tail": stage.tail,
            }
            for stage in status.stages
        ],
    }
