"""This machine as an executor: each command in a process of its own, some at once, none left behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.pipeline import guard
from paft_plugin.pipeline.executor import Ended, Job
from paft_plugin.pipeline.stages import Stage

_GUARD = str(Path(guard.__file__).resolve())


class LocalExecutor:
    """Runs at most `workers` stages at once.

    Args:
        workers: Stages at once.
        grace: Seconds between SIGTERM and SIGKILL for commands that have to be stopped.

    Raises:
        PaftError: Fewer than one worker.
    """

    def __init__(self, workers: int = 2, grace: float = 10.0) -> None:
        if workers < 1:
            raise PaftError(f"At least one worker is needed, not {workers}.")
        self.workers, self.grace = workers, grace
        self._running: set[GuardedCommand] = set()

    def check(self, stage: Stage) -> str:
        """Every stage can run here."""
        return ""

    def has_room(self, stage: Stage) -> bool:
        """Whether a worker is free."""
        return len(self._running) < self.workers

    def start(self, job: Job, lock: int) -> GuardedCommand:
        """Start the stage's command under a guard of its own."""
        command = GuardedCommand(job, self.grace, lock, release=self._running.discard)
        self._running.add(command)
        return command

    def close(self) -> None:
        """Nothing is held beyond the running stages."""


class GuardedCommand:
    """A stage's command and the guard that holds it; `release` is called with it once it has ended."""

    where = ""
    # By path and isolated (-I -S): nothing in the working directory or the environment can get into the guard's way.
    guard: tuple[str, ...] = (sys.executable, "-I", "-S", _GUARD)

    def __init__(self, job: Job, grace: float, lock: int, release: Callable[[GuardedCommand], None]) -> None:
        guarded = [*self.guard, str(lock), str(grace), *job.stage.command]
        self._release = release
        with job.log.open("ab" if job.append else "wb") as output:
            output.write(f"$ {shlex.join(job.stage.command)}\n".encode())
            output.flush()
            self._guard = subprocess.Popen(
                guarded,
                cwd=job.run_dir,
                env={**os.environ, **job.environment},
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches us alone, and we tell the guards
                pass_fds=[lock],
            )

    def poll(self) -> Ended | None:
        """How the command ended, or None while any of its processes runs."""
        if self._guard.poll() is None:
            return None
        self.let_go()
        return Ended(self._guard.returncode)

    def stop(self) -> None:
        """SIGTERM to all of its processes, SIGKILL after the grace."""
        self._tell(guard.STOP)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        self._tell(guard.KILL)

    def let_go(self) -> None:
        """Let go of a guard that has ended, or that does not come to an end."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        if self._guard.returncode != 0:
            guard.kill_session(self._guard.pid)  # in case it was the guard itself that was killed
        self._release(self)

    def _tell(self, message: bytes) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            self._guard.stdin.write(message)
