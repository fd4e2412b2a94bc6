"""What runs on a node of the cluster: one attempt at a stage, in a Ray worker that holds the lifeline of the stage's guard."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

from paft_plugin.runner import guard
from paft_plugin.runner.devices import VISIBLE
from paft_plugin.runner.executor import Job
from paft_plugin.runner.local import GuardedCommand
from paft_plugin.runner.lock import take_hold

POLL = 0.05  # seconds
_PATIENCE = 10.0  # seconds for a hold that the driver has just found free


class ApartCommand(GuardedCommand):
    """A command whose guard survives what Ray does to a worker's children, and ends the command itself."""

    guard = (*GuardedCommand.guard, guard.APART)


class Attempt:
    """An actor: `run` waits in one thread of the worker, and the others listen."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._command: ApartCommand | None = None
        self._stopped = False

    def run(self, job: Job, grace: float, hold: Path, python: str) -> int:
        """Run the command to its end and return its code, as `executor.Ended` has it.

        Args:
            job: The attempt; its paths are the same on every node.
            grace: Seconds between SIGTERM and SIGKILL.
            hold: Locked while any process of the command lives.
            python: The driver's interpreter; a command that names it gets this node's own.

        Raises:
            OSError: The log or the hold cannot be opened or locked.
        """
        descriptor = take_hold(hold, _PATIENCE)
        try:
            with self._mutex:
                if self._stopped:
                    return -signal.SIGTERM
                job = here(job, python)
                self._command = ApartCommand(job, job.environment, "", grace, descriptor, release=lambda _: None)
        finally:
            os.close(descriptor)  # the guard has it from now on
        while (ended := self._command.poll()) is None:
            time.sleep(POLL)
        return ended.code

    def stop(self) -> None:
        """SIGTERM to all of its processes, SIGKILL after the grace; a command that has not started never will."""
        with self._mutex:
            self._stopped = True
            if self._command:
                self._command.stop()

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        with self._mutex:
            self._stopped = True
            if self._command:
                self._command.kill()


def here(job: Job, python: str) -> Job:
    """`job` as it runs on this node: by this Python, on the GPUs that Ray gave to this worker and no others."""
    stage = job.stage
    command = tuple(sys.executable if part == python else part for part in stage.command)
    # Ray sets it where the GPUs are NVIDIA's; other kinds have variables of their own, which pass as they are.
    visible = os.environ.get(VISIBLE) if stage.resources.devices else ""
    environment = dict(stage.environment) if visible is None else {**stage.environment, VISIBLE: visible}
    return dataclasses.replace(job, stage=dataclasses.replace(stage, command=command, environment=environment))
