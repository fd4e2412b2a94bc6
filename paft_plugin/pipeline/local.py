"""Runs stages on this machine: each command in a process of its own, some at once, none left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console

from paft_plugin.errors import PaftError
from paft_plugin.pipeline import guard, logs, stages
from paft_plugin.pipeline.lock import locked
from paft_plugin.pipeline.progress import Progress, StageResult
from paft_plugin.pipeline.stages import Stage

_POLL = 0.05  # seconds
_GUARD = str(Path(guard.__file__).resolve())
_GUARD_EXTRA = 5.0  # seconds beyond the grace that a guard may take before we stop waiting for it


def run_stages(
    wanted: Sequence[Stage],
    run_dir: Path,
    *,
    prepare: Callable[[], None] | None = None,
    workers: int = 2,
    environment: Mapping[str, str] | None = None,
    needed_bytes: int = 0,
    grace: float = 10.0,
    console: Console | None = None,
) -> list[StageResult]:
    """Run what is not up to date, at most `workers` stages at once; results come in the order of `wanted`.

    Args:
        wanted: The stages, in any order.
        run_dir: Holds everything: output folders, `logs/`, the markers, the lock. Commands start in it.
        prepare: Writes the stages' inputs that belong into the run directory; called under the lock, before they are read.
        environment: Variables for every command that do not matter to results (thread counts, devices, offline mode).
        needed_bytes: What a whole run writes, roughly; what finished stages hold already is taken off.
        grace: Seconds between SIGTERM and SIGKILL for commands that have to be stopped.
        console: Where progress goes; standard output by default.

    Raises:
        PaftError: mistakes in the stages, another run at work, too little space, or a failed stage (what else runs is
            stopped then). Finished stages are kept in every case.
        KeyboardInterrupt: after SIGINT, SIGTERM or SIGHUP, once every process of the run is gone.
    """
    if workers < 1:
        raise PaftError(f"At least one worker is needed, not {workers}.")
    run_dir = stages.absolute(Path.cwd(), run_dir)
    ordered = stages.in_order(wanted, run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir, patience=grace + _GUARD_EXTRA) as lock:
            if prepare:
                prepare()
            run = _Run(ordered, run_dir, workers, dict(environment or {}), grace, lock)
            _check_space(run, needed_bytes)
            with _Interrupts() as interrupts, Progress(run_dir, len(ordered), console) as progress:
                run.execute(interrupts, progress)
            return [run.results[stage.name] for stage in wanted]
    except OSError as error:
        raise PaftError(_explain(error, run_dir)) from error


def _explain(error: OSError, run_dir: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full at {run_dir}: make room, then run the same command again. Finished stages are kept."
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(run_dir) else ""
    return f"Cannot work in the run directory {run_dir}: {error.strerror or error}{where}."


def _check_space(run: _Run, needed_bytes: int) -> None:
    """Refuse to start what cannot fit; an out-of-space error hours later would cost those hours."""
    if not run.pending:
        return
    finished = (run.folder(stage) for stage in run.ordered if stage.name not in run.pending)
    held = sum(file.lstat().st_size for folder in finished for file in folder.rglob("*") if not file.is_dir())
    free = shutil.disk_usage(run.run_dir).free
    if needed_bytes - held > free:
        raise PaftError(
            f"This run needs about {logs.size(needed_bytes - held)} of disk, and {run.run_dir} has {logs.size(free)} "
            "free: make room, or choose an output directory on another disk."
        )


class _Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP instead of raising wherever Python stands, so that clean-up is never cut short."""

    def __init__(self) -> None:
        self.count = 0
        self.before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(signum)
                if handler not in (None, signal.SIG_IGN):  # ignored: `nohup`, or a shell's background job
                    self.before[signum] = handler
                    signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        if self.count and error is None:
            raise KeyboardInterrupt  # it came when the last stage was through, and the caller must hear of it, too

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1


@dataclass
class _Command:
    """A running stage: its guard, which holds the real command, and since when (monotonic seconds)."""

    stage: Stage
    guard: subprocess.Popen[bytes]
    since: float
    log: Path


def _tell(commands: Sequence[_Command], message: bytes) -> None:
    for command in commands:
        assert command.guard.stdin is not None
        with contextlib.suppress(OSError):  # it has just ended
            command.guard.stdin.write(message)


def _release(command: _Command) -> None:
    """Let go of a guard that has ended, or that does not come to an end."""
    assert command.guard.stdin is not None
    command.guard.stdin.close()
    if command.guard.returncode != 0:
        guard.kill_session(command.guard.pid)  # in case it was the guard itself that was killed


class _Run:
    """One call of `run_stages`."""

    def __init__(
        self, ordered: list[Stage], run_dir: Path, workers: int, environment: dict[str, str], grace: float, lock: int
    ) -> None:
        self.ordered, self.run_dir, self.workers = ordered, run_dir, workers
        self.environment, self.grace, self.lock = environment, grace, lock
        self.prints = stages.fingerprints(ordered, run_dir)
        self.pending = {stage.name: stage for stage in stages.outdated(ordered, run_dir, self.prints)}
        self.running: dict[str, _Command] = {}
        self.results: dict[str, StageResult] = {}

    def folder(self, stage: Stage) -> Path:
        return stages.absolute(self.run_dir, stage.folder)

    def execute(self, interrupts: _Interrupts, progress: Progress) -> None:
        """Skip what is up to date and run the rest; whatever goes wrong, nothing runs on afterwards."""
        for stage in self.ordered:
            marker = stages.read_marker(self.run_dir, stage.name)
            if stage.name not in self.pending and marker:
                log = stages.log_path(self.run_dir, stage.name)
                self._through(StageResult(stage.name, stage.title, "skipped", marker.seconds, log), progress)
        stages.forget(self.pending.values(), self.run_dir)
        try:
            while self.pending or self.running:
                self._launch(interrupts, progress)
                failures = self._collect(progress)
                if interrupts.count:
                    raise KeyboardInterrupt
                if failures:
                    raise PaftError(failures)
                progress.refresh()
                time.sleep(_POLL)
        finally:
            self._stop(interrupts, progress)

    def _through(self, result: StageResult, progress: Progress) -> None:
        self.results[result.name] = result
        progress.ended(result)

    def _launch(self, interrupts: _Interrupts, progress: Progress) -> None:
        for stage in list(self.pending.values()):
            if len(self.running) >= self.workers or interrupts.count:
                return
            if self.results.keys() >= set(stage.needs):
                del self.pending[stage.name]
                self.running[stage.name] = command = self._start(stage)
                progress.started(stage, command.log)

    def _start(self, stage: Stage) -> _Command:
        kept = stages.prepare_folder(stage, self.run_dir, self.prints[stage.name])
        log = stages.log_path(self.run_dir, stage.name)
        log.parent.mkdir(exist_ok=True)
        # By path and isolated (-I -S): nothing in the working directory or the environment can get into the guard's way.
        guarded = [sys.executable, "-I", "-S", _GUARD, str(self.lock), str(self.grace), *stage.command]
        with log.open("ab" if kept else "wb") as output:
            output.write(f"$ {shlex.join(stage.command)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                guarded,
                cwd=self.run_dir,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment, **stage.environment},
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches us alone, and we tell the guards
                pass_fds=[self.lock],
            )
        return _Command(stage, process, time.monotonic(), log)

    def _collect(self, progress: Progress) -> list[str]:
        """Mark what ended well; return a message for each stage that did not."""
        failures = []
        for name, command in list(self.running.items()):
            code = command.guard.poll()
            if code is None:
                continue
            del self.running[name]
            _release(command)
            if code == 0:
                marker = stages.write_marker(self.run_dir, name, self.prints[name], time.monotonic() - command.since)
                self._through(StageResult(name, command.stage.title, "done", marker.seconds, command.log), progress)
            else:
                progress.failed(command.stage)
                failures.append(logs.failure(name, command.stage.title, code, command.log))
        return failures

    def _stop(self, interrupts: _Interrupts, progress: Progress) -> None:
        """End what still runs, with all its processes: SIGTERM, after the grace or a second Ctrl-C SIGKILL."""
        if not self.running:
            return
        commands = list(self.running.values())
        seen, hurried = interrupts.count, False
        deadline = time.monotonic() + self.grace + _GUARD_EXTRA
        _tell(commands, guard.STOP)
        with contextlib.suppress(
            OSError, SystemExit
        ):  # rich's answer to a closed standard output: maybe why we are here
            progress.stopping()
        while any(command.guard.poll() is None for command in commands) and time.monotonic() < deadline:
            if interrupts.count > seen and not hurried:
                hurried = True
                _tell(commands, guard.KILL)
            time.sleep(_POLL)
        for command in commands:
            _release(command)
        self.running.clear()
