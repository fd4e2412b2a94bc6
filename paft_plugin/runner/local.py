"""This machine as an executor: each command in a process of its own, some at once, none left behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from paft_plugin.errors import raise_if_any
from paft_plugin.runner import guard
from paft_plugin.runner.devices import VISIBLE, Device, main_memory
from paft_plugin.runner.executor import Ended, Executor, Job, Running
from paft_plugin.runner.placement import Machine, Placed, impossible, place
from paft_plugin.runner.stages import Stage

ShareDevice = Literal["auto", "never"]
_GUARD = str(Path(guard.__file__).resolve())


class LocalExecutor(Executor):
    """Runs stages on this machine, at most `workers` at once, each on devices of its own.

    Without `devices` (`find_devices`) they run on the CPU and see no GPU. `threads` of each stage go into `OMP_NUM_THREADS` and
    `MKL_NUM_THREADS`; None: as inherited, or an equal share of the cores. `share_device`: two stages may be on one GPU at once,
    if their estimates fit together.

    Raises:
        PaftError: Fewer than one worker, thread, or another `share_device`.
    """

    def __init__(
        self,
        devices: Sequence[Device] = (),
        *,
        workers: int = 2,
        threads: int | None = None,
        share_device: ShareDevice = "auto",
        grace: float = 10.0,
    ) -> None:
        counts = {"worker": workers, "thread": 1 if threads is None else threads}
        problems = [f"At least one {what} is needed, not {count}." for what, count in counts.items() if count < 1]
        if share_device not in get_args(ShareDevice):
            problems.append(f"share_device is auto or never, not {share_device!r}.")
        raise_if_any(problems)
        self.grace = grace
        self.machine = Machine(workers, tuple(devices), main_memory(), share_device == "auto")
        self._threads = threads
        self._running: dict[GuardedCommand, Placed] = {}
        self._found: dict[str, tuple[int, ...]] = {}  # the stage that had room last, and where

    def check(self, stage: Stage) -> str:
        return impossible(self.machine, stage.resources)

    def has_room(self, stage: Stage, waiting: Sequence[Stage]) -> bool:
        """Whether a worker, enough devices and enough memory are free (`placement.py` says how that is decided)."""
        running, wanted = list(self._running.values()), [each.resources for each in waiting]
        indices = place(self.machine, running, stage.resources, wanted)
        self._found = {} if indices is None else {stage.name: indices}
        return indices is not None

    def start(self, job: Job, lock: int) -> GuardedCommand:
        """Start the stage's command under a guard of its own, on the devices that `has_room` found."""
        indices = self._found.pop(job.stage.name)
        devices = [self.machine.devices[index] for index in indices]
        variables = {**self._thread_variables(), **job.environment, VISIBLE: ",".join(device.id for device in devices)}
        where = ", ".join(device.label for device in devices).replace(", GPU ", ", ")
        command = GuardedCommand(job, variables, where, self.grace, lock, lambda ended: self._running.pop(ended, None))
        self._running[command] = Placed(job.stage.resources, indices)
        return command

    def close(self) -> None:
        pass  # nothing is held beyond the running stages

    def _thread_variables(self) -> dict[str, str]:
        if self._threads is None and "OMP_NUM_THREADS" in os.environ:
            return {}
        threads = self._threads or max(1, _cores() // self.machine.workers)
        return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class GuardedCommand(Running):
    """A stage's command and the guard that holds it; `release` is called with it once it has ended."""

    # By path and isolated (-I -S): nothing in the working directory or the environment can get into the guard's way.
    guard: tuple[str, ...] = (sys.executable, "-I", "-S", _GUARD)

    def __init__(
        self,
        job: Job,
        variables: Mapping[str, str],
        where: str,
        grace: float,
        lock: int,
        release: Callable[[GuardedCommand], object],
    ) -> None:
        guarded = [*self.guard, str(lock), str(grace), *job.stage.command]
        self.where, self._release = where, release
        self._peak_memory: int | None = None
        # In both directions: we tell the guard to stop, it tells us what the command took.
        self._lifeline, other_end = socket.socketpair()
        with other_end, job.log.open("ab" if job.append else "wb") as output:
            output.write(f"$ {shlex.join(job.stage.command)}\n".encode())
            output.flush()
            self._guard = subprocess.Popen(
                guarded,
                cwd=job.run_dir,
                env={**os.environ, **variables},
                stdin=other_end.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches us alone, and we tell the guards
                pass_fds=[lock],
            )

    def poll(self) -> Ended | None:
        if self._guard.poll() is None:
            return None
        with contextlib.suppress(OSError, ValueError):  # a guard that was killed told us nothing
            self._peak_memory = int(self._lifeline.recv(32, socket.MSG_DONTWAIT))
        self.let_go()
        return Ended(self._guard.returncode, peak_memory=self._peak_memory)

    def stop(self) -> None:
        self._tell(guard.STOP)

    def kill(self) -> None:
        self._tell(guard.KILL)

    def let_go(self) -> None:
        """Let go of a guard that has ended, or that does not come to an end."""
        self._lifeline.close()
        if self._guard.returncode != 0:
            guard.kill_session(self._guard.pid)  # in case it was the guard itself that was killed
        self._release(self)

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            self._lifeline.sendall(message)
