"""A Ray cluster as an executor: each attempt at a stage is an actor on one of its nodes, placed by what the stage takes.

The run directory has to be on storage that all nodes share. Nothing is shipped: what the commands need is installed on the
nodes, and inside a stage its own launchers stay in charge. The driver keeps the run's lock; each remote guard keeps its
stage's hold (`lock.py`), and as long as that is taken, whatever became of the node or of Ray's word
on it, an attempt counts as running: two never write into one folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paft_plugin.errors import PaftError, first_line
from paft_plugin.files import is_locked
from paft_plugin.runner import guard
from paft_plugin.runner.devices import VISIBLE
from paft_plugin.runner.executor import Ended, Executor, Job, Running
from paft_plugin.runner.local import GuardedCommand
from paft_plugin.runner.lock import hold_path, take_hold
from paft_plugin.runner.ray.connect import Package, alive_nodes, check_nodes, connect, in_words
from paft_plugin.runner.stages import Resources, Stage

_HOLD_PATIENCE = 120.0  # seconds beyond the grace: an NFS server gives up a dead client's locks after 90
_TAKE_PATIENCE = 10.0  # seconds for a hold that the driver has just found free
_POLL = 0.05  # seconds between two looks at a command, on its node


def bundle(resources: Resources, *, gpus: bool) -> dict[str, float]:
    """What a stage takes, in Ray's words: CPUs, GPUs, bytes of memory.

    A CPU for each process, and a process for each device, which is what launchers of trainings start. Where there are no
    `gpus` at all in the cluster, a stage takes none.
    """
    taken: dict[str, float] = {"CPU": max(1, resources.devices)}
    if gpus and resources.devices:
        taken["GPU"] = resources.devices
    if resources.memory:
        taken["memory"] = resources.memory
    return taken


def task_options(taken: dict[str, float]) -> dict[str, Any]:
    """Ray's options for an attempt that takes `taken`; Ray repeats nothing, since that is the scheduler's to decide."""
    return {
        "num_cpus": taken["CPU"],
        "num_gpus": taken.get("GPU", 0),
        "memory": taken.get("memory"),
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 4,  # `run` waits in one thread; `stop` and `kill` must get through
    }


class Place(NamedTuple):
    """Where an attempt runs: what Ray reserved, and the node on which it did (empty when that has just gone)."""

    group: Any
    node_id: str
    address: str


class RayExecutor(Executor):
    """Runs stages on the nodes of a Ray cluster, as many at once as fit.

    Its head is at `address` (`HOST:PORT`; `auto`: what `RAY_ADDRESS` names, or the cluster of this machine), and `package` has to
    be on every node.

    Raises:
        PaftError: Ray is not installed, no cluster is there, or it runs another version of Ray or Python.
    """

    def __init__(self, address: str, package: Package, *, grace: float = 10.0) -> None:
        self.grace = grace
        self._package = package
        self._ray = connect(address, package)
        self._gpus = any(node.total.get("GPU") for node in alive_nodes())
        self._wanted: dict[str, dict[str, float]] = {}  # stage → what it takes
        self._reserved: dict[str, Any] = {}  # stage → placement group, until the stage starts
        self._running: set[RemoteAttempt] = set()
        self._known: set[str] = set()  # nodes that were looked at

    def check(self, stage: Stage) -> str:
        """Why no node of the cluster, as it is now, could ever hold `stage`; empty if one can."""
        taken = self._wanted[stage.name] = bundle(stage.resources, gpus=self._gpus)
        nodes = alive_nodes()
        if any(node.can_hold(taken) for node in nodes):
            return ""
        return f"it takes {in_words(taken)}, and no node of the Ray cluster has that: {'; '.join(map(str, nodes))}."

    def has_room(self, stage: Stage, waiting: Sequence[Stage] = ()) -> bool:
        """Whether Ray has reserved what `stage` takes; asks for it if need be, in the order in which stages come."""
        from ray.util import placement_group, placement_group_table

        if not self._running and (problem := self.check(stage)):
            raise PaftError(f"Stage {stage.name!r} cannot go on: {problem}")  # the node that could hold it is gone
        if stage.name not in self._reserved:
            self._reserved[stage.name] = placement_group([self._wanted[stage.name]])
        return placement_group_table(self._reserved[stage.name])["state"] == "CREATED"

    def start(self, job: Job, lock: int) -> RemoteAttempt:
        """As said there; raises `PaftError` when the node cannot run it."""
        self._look_at_nodes(job)
        group = self._reserved.pop(job.stage.name)
        taken = self._wanted[job.stage.name]
        running = RemoteAttempt(self._ray, job, self.grace, self._place(group), taken, self._running.discard)
        self._running.add(running)
        return running

    def close(self) -> None:
        """Leave the cluster; what was reserved is free again."""
        self._ray.shutdown()

    def _look_at_nodes(self, job: Job) -> None:
        able = [node for node in alive_nodes() if any(node.can_hold(taken) for taken in self._wanted.values())]
        if new := [node for node in able if node.id not in self._known]:
            check_nodes(new, job.run_dir, self._package)
            self._known.update(node.id for node in new)

    def _place(self, group: Any) -> Place:
        from ray.util import placement_group_table

        ids = placement_group_table(group)["bundles_to_node_id"].values()
        node = next((node for node in alive_nodes() if node.id in ids), None)
        return Place(group, node.id if node else "", node.address if node else "")


class RemoteAttempt(Running):
    """A stage under way on some node; `release` is called with it once it has ended and nothing of it is left."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        grace: float,
        place: Place,
        taken: dict[str, float],
        release: Callable[[RemoteAttempt], None],
    ) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.where = f"node {place.address}" if place.address else ""
        self._ray, self._job, self._grace, self._place, self._release = ray, job, grace, place, release
        self._hold = hold_path(job.run_dir, job.stage.name)
        self._ended: Ended | None = None
        self._gone: Ended | None = None  # how it ended, once nothing of it is left
        self._deadline = 0.0
        actor = ray.remote(Attempt).options(
            **task_options(taken), scheduling_strategy=PlacementGroupSchedulingStrategy(place.group)
        )
        self._actor = actor.remote()
        self._run = self._actor.run.remote(job, grace, self._hold, sys.executable)

    def poll(self) -> Ended | None:
        if self._ended is None and (ended := self._after_loss(self._gone) if self._gone else self._look()):
            self._ended = ended
            self.let_go()
        return self._ended

    def stop(self) -> None:
        self._actor.stop.remote()

    def kill(self) -> None:
        self._actor.kill.remote()

    def let_go(self) -> None:
        """Give back what it held; the lifeline of a guard that still lives ends with the actor."""
        from ray.util import remove_placement_group

        self._ray.kill(self._actor)
        remove_placement_group(self._place.group)
        self._release(self)

    def _look(self) -> Ended | None:
        errors = self._ray.exceptions
        if not self._ray.wait([self._run], timeout=0)[0]:
            return None
        try:
            return Ended(self._ray.get(self._run))
        except errors.RayTaskError as error:  # our own code failed there: a log that cannot be written, say
            return self._fail(f"The command could not be run on {self.where}: {error.cause}")
        except errors.OutOfMemoryError as error:
            # No loss of a place: it would run out of memory again elsewhere.
            self._say(f"Ray ended the stage, because {self.where} ran out of memory: {first_line(error)}")
            self._gone = Ended(-signal.SIGKILL)
        except errors.RayError as error:
            self._gone = Ended(-signal.SIGKILL, lost=f"{self._what_is_gone()}: {first_line(error)}")
        # Whatever is gone, the guard may live, and its command until the guard has ended it.
        self._ray.kill(self._actor)
        self._deadline = time.monotonic() + self._grace + _HOLD_PATIENCE
        return None

    def _after_loss(self, gone: Ended) -> Ended | None:
        if not is_locked(self._hold):
            return gone
        if time.monotonic() < self._deadline:
            return None
        return self._fail(
            f"{self._what_is_gone()}, but what ran there may still write: see that it does not, delete {self._hold}, then "
            "run the same command again."
        )

    def _what_is_gone(self) -> str:
        alive = any(node.id == self._place.node_id for node in alive_nodes())
        return f"Ray's worker on {self.where} is gone" if alive else f"{self.where} is gone"

    def _fail(self, why: str) -> Ended:
        self._say(why)
        return Ended(1)

    def _say(self, text: str) -> None:
        """Into the log, of which a failed stage shows the end."""
        with contextlib.suppress(OSError), self._job.log.open("a") as log:
            log.write(f"{text}\n")


# --- on a node of the cluster ---------------------------------------------------------------------------------------------


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
        """Run the command to its end and return its code, as `executor.Ended` has it; paths are the same on every node.

        `hold` is locked while any process of the command lives. A command that names `python`, the driver's interpreter, gets
        this node's own. Raises `OSError` when the log or the hold cannot be opened or locked.
        """
        descriptor = take_hold(hold, _TAKE_PATIENCE)
        try:
            with self._mutex:
                if self._stopped:
                    return -signal.SIGTERM
                job = here(job, python)
                self._command = ApartCommand(job, job.environment, "", grace, descriptor, release=lambda _: None)
        finally:
            os.close(descriptor)  # the guard has it from now on
        while (ended := self._command.poll()) is None:
            time.sleep(_POLL)
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
