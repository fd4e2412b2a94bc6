"""A Ray cluster of two nodes on this machine, and watchers that kill parts of it in the middle of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from paft_plugin.runner.executor import StageResult
from paft_plugin.runner.stages import Stage
from tests.runner.tools import alive

STORE = 80 << 20  # bytes of Ray's object store on a node; nothing uses it


class TwoNodes:
    """A cluster of a head and one more node, each with a CPU; the second can be killed, and comes back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
        )
        self.second: Any = None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_second(self, **settings: Any) -> None:
        settings = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, **settings}
        self.second = self.cluster.add_node(**settings)

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def is_on(self, pid: int, which: str) -> bool:
        """Whether a process runs on the `head` or the `second` node."""
        node = self.cluster.head_node if which == "head" else self.second
        raylet = node.all_processes["raylet"][0].process.pid
        return raylet in [parent.pid for parent in psutil.Process(pid).parents()]


class Watching:
    """Notes what is told, and lets a test step in."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __enter__(self) -> Watching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...

    def planned(self, ordered: Sequence[Stage], reasons: Mapping[str, str]) -> None: ...

    def started(self, stage: Stage, log: Path, where: str) -> None:
        assert where.startswith("node ")
        self.told.append(f"started {stage.name}")

    def ended(self, result: StageResult) -> None:
        self.told.append(f"{result.status} {result.name}")

    def lost(self, stage: Stage, why: str) -> None:
        self.told.append(f"lost {stage.name}")

    def failed(self, stage: Stage, why: str = "") -> None:
        self.told.append(f"failed {stage.name}")

    def stopping(self) -> None: ...

    def refresh(self) -> None: ...


class Killer(Watching):
    """Kills something of the stage that runs on the second node, once both branches are half-way."""

    def __init__(self, nodes: TwoNodes, run_dir: Path) -> None:
        super().__init__()
        self.nodes, self.run_dir = nodes, run_dir
        self.victim, self.pid = "", 0

    def kill(self) -> None:
        raise NotImplementedError

    def refresh(self) -> None:
        here = {path.parent.name: int(path.name[4:]) for path in self.run_dir.glob("out/*/pid-*")}
        if len(here) == 2 and not self.pid:
            ((self.victim, self.pid),) = [(name, pid) for name, pid in here.items() if self.nodes.is_on(pid, "second")]
            self.kill()

    def lost(self, stage: Stage, why: str) -> None:
        super().lost(stage, why)
        assert stage.name == self.victim
        assert not alive(self.pid), "the place is told lost only when nothing of the attempt is left"
        (self.run_dir / "go").touch()


class NodeKiller(Killer):
    def kill(self) -> None:
        self.nodes.kill_second()


class WorkerKiller(Killer):
    def kill(self) -> None:
        family = psutil.Process(self.pid).parents()
        raylet = self.nodes.second.all_processes["raylet"][0].process.pid
        worker = family[[parent.pid for parent in family].index(raylet) - 1]
        worker.kill()
