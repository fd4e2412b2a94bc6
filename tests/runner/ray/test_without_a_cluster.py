"""What the Ray executor says and decides without a cluster: options, addresses, what a node is asked."""

from __future__ import annotations

import dataclasses
import fcntl
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from paft_plugin.errors import PaftError
from paft_plugin.runner.executor import Job
from paft_plugin.runner.ray import connect
from paft_plugin.runner.ray.cluster import RayExecutor, bundle, here, task_options
from paft_plugin.runner.ray.connect import Node, in_words
from paft_plugin.runner.ray.node_probe import look_around
from paft_plugin.runner.stages import Resources
from tests.runner.tools import PACKAGE, python

GB = 10**9


@given(st.integers(0, 16), st.integers(0, 1 << 40), st.booleans())
def test_what_ray_is_asked_for_is_what_the_stage_takes(devices: int, memory: int, gpus: bool) -> None:
    taken = bundle(Resources(devices=devices, device_memory=memory, memory=memory), gpus=gpus)
    options = task_options(taken)
    assert options["num_gpus"] == (devices if gpus else 0)
    assert options["num_cpus"] == max(1, devices)
    assert options["memory"] == (memory or None)
    assert options["max_restarts"] == options["max_task_retries"] == 0
    assert all(amount > 0 for amount in taken.values()), "Ray refuses a bundle with a zero in it"
    assert Node("id", "10.0.0.7", taken).can_hold(taken)
    more = {kind: amount + 1 for kind, amount in taken.items()}
    assert not Node("id", "10.0.0.7", taken).can_hold(more)


def test_words_for_amounts() -> None:
    assert in_words({"CPU": 2, "GPU": 1, "memory": 16 * GB}) == "2 CPU, 1 GPU, 16.0 GB of memory"
    assert str(Node("id", "10.0.0.7", {"CPU": 8.0})) == "node 10.0.0.7 (8 CPU)"


def test_a_stage_runs_with_the_node_s_python_on_ray_s_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for devices, visible in ((1, "3"), (0, "")):
        stage = python("a", "", environment={"SEED": "1"}, resources=Resources(devices=devices))
        stage = dataclasses.replace(stage, command=("/elsewhere/python", *stage.command[1:]))
        job = Job(stage, tmp_path, tmp_path / "log", append=False, variables={"CUDA_VISIBLE_DEVICES": "7"})
        ran = here(job, "/elsewhere/python")
        assert ran.stage.command[0] == sys.executable
        assert ran.environment == {"PYTHONUNBUFFERED": "1", "SEED": "1", "CUDA_VISIBLE_DEVICES": visible}


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PaftError, match=r"pip install 'paft-plugin\[ray\]'"):
        RayExecutor("auto", PACKAGE)


def test_the_executor_is_imported_without_ray() -> None:
    code = "import sys, paft_plugin.runner.ray.cluster; print([m for m in ('ray', 'torch') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{port}", r"No Ray cluster answers at .*:{port} \(Connection refused\)\. Start a cluster first"),
        ("ray://127.0.0.1:{port}", "give HOST:PORT of the cluster's head"),
        ("local", "give HOST:PORT of the cluster's head"),
        ("nonsense", "is not HOST:PORT"),
    ],
)
def test_where_no_cluster_is_one_line_says_so(address: str, said: str) -> None:
    port = free_port()
    with pytest.raises(PaftError, match=said.format(port=port)) as caught:
        RayExecutor(address.format(port=port), PACKAGE)
    assert len(caught.value.problems) == 1


def test_the_address_of_the_environment_counts_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(PaftError, match=f"answers at .*:{port}"):
        RayExecutor("auto", PACKAGE)


# --- what a node is asked -------------------------------------------------------------------------------------------------


def problems(facts: Mapping[str, str]) -> list[str]:
    return connect.node_problems(Node("id", "10.0.0.7", {}), facts, Path("/shared/run"), PACKAGE)


def test_a_node_that_shares_the_folder_and_its_locks_has_no_problem(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.write_text("token")
    with probe.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        facts = look_around(str(probe), "token", "paft_plugin")
    assert facts["package"] == PACKAGE.version
    assert problems(facts) == []
    unfelt = look_around(str(probe), "token", "paft_plugin")  # the lock is gone, as it is where locks do not travel
    assert "flock works between machines" in problems(unfelt)[0]


def test_a_node_that_sees_no_or_another_folder_is_told(tmp_path: Path) -> None:
    assert "No such file" in problems(look_around(str(tmp_path / "gone"), "token", "paft_plugin"))[0]
    (tmp_path / "probe").write_text("other")
    (problem,) = problems(look_around(str(tmp_path / "probe"), "token", "paft_plugin"))
    assert problem == (
        "The run directory /shared/run is not usable on node 10.0.0.7 of the Ray cluster (another folder has the same path "
        "there): it has to be on storage that all nodes share, under the same path and writable."
    )


def test_all_that_is_wrong_with_a_node_is_told_at_once() -> None:
    facts = {
        "python": "2.7",
        "executable": "/usr/bin/python",
        "package": "",
        "run_dir": "Permission denied",
        "locks": "",
    }
    found = problems(facts)
    assert len(found) == 3
    assert "Ray's Python is 2.7" in found[1]
    assert "paft-plugin is not installed on node 10.0.0.7" in found[2]


def test_the_extra_is_axolotl_s_own_which_brings_ray_train() -> None:
    (theirs,) = [each for each in map(Requirement, requires("axolotl") or []) if each.name == "ray"]
    assert str(theirs.marker) == 'extra == "ray"'
    assert theirs.extras == {"train"}
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert re.findall(r'^ray = \[\s*"(.*?)"', project, re.MULTILINE) == ["axolotl[ray]"]
