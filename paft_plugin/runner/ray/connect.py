"""The way to a Ray cluster: Ray itself, the cluster at an address, its nodes, and whether stages can run on them."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paft_plugin.errors import PaftError, one_line, raise_if_any
from paft_plugin.files import lock_file
from paft_plugin.runner import logs
from paft_plugin.runner.ray import node_probe, private
from paft_plugin.runner.stages import MARKERS

_REACH = 10.0  # seconds for a connection to the cluster's port: Ray itself would try for minutes
_ANSWER = 120.0  # seconds for a node to answer: it may have to start a Python first, on slow storage
_START = "Start a cluster first (`ray start --head`, then `ray start --address=HOST:PORT` on the other machines)"


class Package(NamedTuple):
    """What has to be installed on every node as it is here: the package that brings the runner, and the stages' commands."""

    name: str
    """For `pip install`; it has an extra `ray`."""
    module: str
    """For `import`."""
    version: str


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive."""

    id: str
    address: str
    total: Mapping[str, float]
    """Ray's resources of the whole node, taken or not."""

    def can_hold(self, taken: Mapping[str, float]) -> bool:
        """Whether it could, with nothing else on it."""
        return all(self.total.get(kind, 0) >= amount for kind, amount in taken.items())

    def __str__(self) -> str:
        return f"node {self.address} ({in_words({kind: self.total.get(kind, 0) for kind in ('CPU', 'GPU', 'memory')})})"


def in_words(taken: Mapping[str, float]) -> str:
    """`2 CPU, 1 GPU, 16.0 GB of memory`; kinds of which there are none are left out."""
    said = {kind: f"{amount:g} {kind}" for kind, amount in taken.items()}
    if "memory" in taken:
        said["memory"] = f"{logs.size(int(taken['memory']))} of memory"
    return ", ".join(text for kind, text in said.items() if taken[kind]) or "nothing"


def connect(address: str, package: Package) -> Any:
    """Make this process a driver of the cluster at `address` (`HOST:PORT`, or `auto`); return the module `ray`.

    Raises `PaftError` when Ray is not installed, no cluster is there, or it runs other versions.
    """
    try:
        import ray
    except ImportError as error:
        raise PaftError(
            f"executor: ray needs Ray, which cannot be imported ({error}): pip install '{package.name}[ray]'"
        ) from error
    found = _find(address)
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(address=found, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = one_line(error)
        raise PaftError(
            f"Cannot join the Ray cluster at {found}: {why}. The run has to be started on a machine that belongs to the "
            "cluster (`ray start --address=…` makes it one), with the Python and the Ray that the cluster runs."
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray takes it over, and never gives it back
    private.be_silent_about_workers()
    return ray


def _find(address: str) -> str:
    """`address` as HOST:PORT, once something listens there."""
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if "://" in address or address == "local":
        raise PaftError(
            f"executor: ray cannot use the address {address!r}: give HOST:PORT of the cluster's head, or auto, and start the "
            "run on a machine that belongs to the cluster."
        )
    try:
        found = private.bootstrap_address(address)
    except ConnectionError as error:
        raise PaftError(f"No Ray cluster was found on this machine. {_START}, or give its address.") from error
    except (OSError, ValueError) as error:
        raise PaftError(f"The address {address!r} of the Ray cluster is not HOST:PORT: {error}") from error
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
    except OSError as error:
        raise PaftError(f"No Ray cluster answers at {found} ({error.strerror or error}). {_START}.") from error
    return found


def alive_nodes() -> list[Node]:
    """The nodes that the cluster has now."""
    import ray

    return [
        Node(each["NodeID"], each["NodeManagerAddress"], each.get("Resources", {}))
        for each in ray.nodes()
        if each["Alive"]
    ]


def check_nodes(nodes: Sequence[Node], run_dir: Path, package: Package) -> None:
    """Look around on each of `nodes`: the run directory, its locks, Python and the package.

    Raises `PaftError` with what is wrong on all of them. A node that goes away meanwhile has no problem.
    """
    folder = run_dir / MARKERS
    folder.mkdir(exist_ok=True)
    probe, text = folder / f"probe-{secrets.token_hex(8)}", secrets.token_hex(8)
    lock = lock_file(probe)
    try:
        os.write(lock, text.encode())
        os.fsync(lock)
        facts = _ask(nodes, str(probe), text, package.module)
    finally:
        probe.unlink()
        os.close(lock)
    raise_if_any([problem for node, found in facts for problem in node_problems(node, found, run_dir, package)])


def _ask(nodes: Sequence[Node], probe: str, text: str, module: str) -> list[tuple[Node, dict[str, str]]]:
    import ray
    from ray.cloudpickle.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    register_pickle_by_value(node_probe)  # a node without our package is to say so, not to fail
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(node_probe.look_around)
        asked = {
            task.options(scheduling_strategy=On(node.id, soft=False)).remote(probe, text, module): node
            for node in nodes
        }
    finally:
        unregister_pickle_by_value(node_probe)
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER)
    raise_if_any([f"Node {asked[ref].address} of the Ray cluster does not answer." for ref in silent])
    answers = []
    for ref, node in asked.items():
        try:
            answers.append((node, ray.get(ref)))
        except ray.exceptions.RayError as error:
            if any(node.id == alive.id for alive in alive_nodes()):
                raise PaftError(f"Node {node.address} of the Ray cluster cannot run anything: {error}") from error
    return answers


def node_problems(node: Node, facts: Mapping[str, str], run_dir: Path, package: Package) -> list[str]:
    """What is wrong with `node`, from the `facts` of `node_probe.look_around`."""
    where = f"node {node.address} of the Ray cluster"
    problems = []
    if facts["run_dir"]:
        problems.append(
            f"The run directory {run_dir} is not usable on {where} ({facts['run_dir']}): it has to be on storage that all "
            "nodes share, under the same path and writable."
        )
    elif facts["locks"] != "yes":
        problems.append(
            f"A lock in the run directory {run_dir} is not felt on {where} {facts['locks']}: mount its storage so that "
            "flock works between machines (NFS: not with nolock or local_lock, Lustre: with flock)."
        )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if facts["python"] != python:
        problems.append(
            f"On {where}, Ray's Python is {facts['python']}, here it is {python}: they have to be the same."
        )
    if not facts["package"]:
        problems.append(
            f"{package.name} is not installed on {where}, in Ray's Python there ({facts['executable']}): install what is "
            "installed here."
        )
    elif facts["package"] != package.version:
        problems.append(
            f"On {where}, {package.name} is {facts['package']}, here it is {package.version}: install the same."
        )
    return problems
