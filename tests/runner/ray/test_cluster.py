"""Stages on a real Ray cluster of two nodes on this machine: nodes, workers and drivers are killed in the middle."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.plan import make_plan
from paft_plugin.pipeline.run import prepare, variables
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.ray.cluster import RayExecutor
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage
from paft_plugin.runner.watch.events import EventLog
from tests.pipeline.runs import write_run
from tests.runner.families import LINUX, POLITE, STUBBORN, family, no_longer
from tests.runner.ray.nodes import Killer, NodeKiller, TwoNodes, Watching, WorkerKiller
from tests.runner.tools import PACKAGE, PATIENCE, Driver, contents, python, wait_for

pytestmark = [pytest.mark.slow, LINUX]


# Counts to 100 and goes on where an earlier attempt was; half-way it waits for `go`, and SIGTERM means nothing to it.
HALF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
steps = out / 'steps'
done = len(steps.read_text().split()) if steps.exists() else 0
print('begins at', done)
for i in range(done, 100):
    with steps.open('a') as file: file.write(f'{i}\\n')
    if i == 50:
        (out / f'pid-{os.getpid()}').touch()
        until(lambda: Path('go').exists())
for path in out.glob('pid-*'): path.unlink()
"""


def diamond() -> list[Stage]:
    """Two branches that resume, between a first and a last stage."""
    return [
        python("first", "(out / 'x').write_text('1')"),
        python("a", HALF, needs=("first",), resumes=True),
        python("b", HALF, needs=("first",), resumes=True),
        python("last", "(out / 'x').write_text(Path('out/a/steps').read_text())", needs=("a", "b")),
    ]


@pytest.mark.parametrize("killer", [NodeKiller, WorkerKiller])
def test_a_branch_whose_node_or_worker_dies_goes_on_elsewhere(
    nodes: TwoNodes, run_dir: Path, tmp_path: Path, killer: type[Killer], capfd: pytest.CaptureFixture[str]
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    (undisturbed / "go").touch()
    run_stages(diamond(), undisturbed, LocalExecutor())
    capfd.readouterr()
    watching = killer(nodes, run_dir)
    results = run_stages(diamond(), run_dir, RayExecutor(nodes.address, PACKAGE, grace=0.5), [watching])
    shown = capfd.readouterr()
    assert [result.status for result in results] == ["done"] * 4
    victim = watching.victim
    told = watching.told
    assert told.index(f"lost {victim}") < told.index(f"done {victim}")
    assert told.count(f"started {victim}") == 2
    assert told.count("started a") + told.count("started b") == 3, "the other branch is not disturbed"
    assert "begins at 51" in (run_dir / "logs" / f"{victim}.log").read_text()
    assert contents(run_dir / "out") == contents(undisturbed / "out")
    for stage in diamond():
        here, there = read_marker(run_dir, stage.name), read_marker(undisturbed, stage.name)
        assert here is not None
        assert there is not None
        assert here.fingerprint == there.fingerprint
    assert shown.out + shown.err == "", "Ray's own messages stay out of the display"


@pytest.mark.parametrize("code", [POLITE, STUBBORN], ids=["polite", "stubborn"])
def test_a_killed_driver_leaves_no_orphan_and_the_next_run_waits_for_them(
    nodes: TwoNodes, run_dir: Path, ray_driver: Driver, code: str
) -> None:
    pids = family(ray_driver, run_dir, code, grace=1.0)
    ray_driver.started[0].kill()
    ray_driver.started[0].wait(PATIENCE)
    stages = [python("first", ""), python("next", "")]
    results = run_stages(stages, run_dir, RayExecutor(nodes.address, PACKAGE, grace=30.0))
    assert no_longer(pids), "the stages' holds outlived the driver until their guards were through"
    assert [result.status for result in results] == ["skipped", "done"]


def test_a_signal_ends_the_run_and_all_its_processes(run_dir: Path, ray_driver: Driver) -> None:
    """SIGTERM, which Ray would answer itself."""
    pids = family(ray_driver, run_dir, POLITE)
    parent = ray_driver.started[0]
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(PATIENCE) == 130
    assert no_longer(pids), "they are gone before the run itself ends"
    assert read_marker(run_dir, "first") is not None
    assert read_marker(run_dir, "a") is None


def test_a_second_interrupt_does_not_wait_for_the_grace(run_dir: Path, ray_driver: Driver) -> None:
    pids = family(ray_driver, run_dir, STUBBORN, grace=1000.0)
    parent = ray_driver.started[0]
    parent.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping" in ray_driver.output.read_text(), "the run to be stopping")
    parent.send_signal(signal.SIGINT)
    assert parent.wait(PATIENCE) == 130
    assert no_longer(pids)


def test_a_second_run_is_refused_while_one_is_at_work(nodes: TwoNodes, run_dir: Path, ray_driver: Driver) -> None:
    first = ray_driver.start([python("slow", "(out / 'here').touch()\ntime.sleep(120)")], run_dir)
    wait_for((run_dir / "out" / "slow" / "here").exists, "the first run")
    with pytest.raises(PaftError, match=rf"Another run \(process {first.pid}\) is at work in"):
        run_stages([python("other", "")], run_dir, RayExecutor(nodes.address, PACKAGE))
    first.send_signal(signal.SIGINT)
    assert first.wait(PATIENCE) == 130


def test_a_failure_lets_the_others_go_on_and_is_told_as_ever(nodes: TwoNodes, run_dir: Path) -> None:
    beside = python(
        "beside", "(out / 'here').touch()\nuntil(lambda: 'stage_failed' in Path('events.jsonl').read_text())"
    )
    bad = python("bad", "until(lambda: Path('out/beside/here').exists())\nsys.exit('it broke')")
    with pytest.raises(PaftError, match=r"(?s)'bad' .* failed with exit code 1.*it broke") as caught:
        run_stages([beside, bad], run_dir, RayExecutor(nodes.address, PACKAGE), [EventLog(run_dir)])
    assert len(caught.value.problems) == 1
    assert read_marker(run_dir, "beside")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("no-such-tool",), "cannot run no-such-tool: No such file"),
        (python("bad", "os.kill(os.getpid(), 9)").command, "was killed by SIGKILL"),
    ],
)
def test_how_a_command_ended_is_told(nodes: TwoNodes, run_dir: Path, command: tuple[str, ...], said: str) -> None:
    watching = Watching()
    with pytest.raises(PaftError, match=said):
        run_stages(
            [Stage("bad", "Bad", command, Path("out/bad"))], run_dir, RayExecutor(nodes.address, PACKAGE), [watching]
        )
    assert watching.told == ["started bad", "failed bad"], "its own failure is no loss of a place"


def test_each_stage_sees_the_devices_that_it_holds(head: TwoNodes, run_dir: Path) -> None:
    """The node only says that it has two GPUs: what Ray hands out is all that matters here."""
    if head.second:
        head.kill_second()
    head.add_second(num_cpus=3, num_gpus=2)
    meet = "(out / 'x').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\nuntil(lambda: len(list(out.parent.glob('*/x'))) == 3)"
    wants = {"one": Resources(devices=1), "two": Resources(devices=1, memory=1 << 20), "none": Resources()}
    stages = [python(name, meet, resources=resources) for name, resources in wants.items()]
    try:
        run_stages(stages, run_dir, RayExecutor(head.address, PACKAGE), variables={"CUDA_VISIBLE_DEVICES": "7"})
        too_large = [
            python("wide", "", resources=Resources(devices=3)),
            python("tall", "", resources=Resources(memory=10**15)),
        ]
        with pytest.raises(PaftError, match="no node of the Ray cluster has that") as caught:
            run_stages(too_large, run_dir, RayExecutor(head.address, PACKAGE))
    finally:
        head.kill_second()
    seen = {path.parent.name: path.read_text() for path in run_dir.glob("out/*/x")}
    assert sorted((seen["one"], seen["two"])) == ["0", "1"]
    assert seen["none"] == ""
    assert len(caught.value.problems) == 2
    assert "3 CPU, 3 GPU" in caught.value.problems[0]
    assert "1000000.0 GB of memory" in caught.value.problems[1]


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("raise ImportError", "paft-plugin is not installed on node"),
        ("__version__ = '0.0'", "paft-plugin is 0.0, here"),
    ],
)
def test_a_node_with_another_installation_is_named(
    head: TwoNodes, run_dir: Path, tmp_path: Path, package: str, said: str
) -> None:
    (tmp_path / "paft_plugin").mkdir()
    (tmp_path / "paft_plugin" / "__init__.py").write_text(package)
    if head.second:
        head.kill_second()
    head.add_second(env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        with pytest.raises(PaftError, match=said) as caught:
            run_stages([python("a", "")], run_dir, RayExecutor(head.address, PACKAGE))
    finally:
        head.kill_second()
    assert len(caught.value.problems) == 1, "the head has what it needs"
    assert not (run_dir / "out" / "a" / "x").exists()


def test_a_cluster_of_another_version_is_refused(nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "2.0.0")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PaftError, match=r"Cannot join the Ray cluster at .*Version mismatch.*2\.0\.0"):
        RayExecutor(nodes.address, PACKAGE)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_ray_leaves_the_process_as_it_was(nodes: TwoNodes, run_dir: Path) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    run_stages([python("a", "")], run_dir, RayExecutor(nodes.address, PACKAGE))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not ray.is_initialized()


def test_branches_trained_on_two_nodes_are_those_trained_here(nodes: TwoNodes, tmp_path: Path) -> None:
    """Two real trainings at once, one on each node: the same adapters, bit for bit."""
    branches = ("sft-l1", "dpo")
    weights = {}
    for where in ("here", "cluster"):
        setup = prepare(write_run(tmp_path / where, sft_steps=2, preference_steps=2), branches)
        stages = [stage for stage in make_plan(setup).stages if stage.name in branches]
        watching = Watching() if where == "cluster" else None
        executor = RayExecutor(nodes.address, PACKAGE) if watching else LocalExecutor(threads=1)
        run_stages(stages, setup.run_dir, executor, [watching] if watching else [], variables=variables(setup))
        weights[where] = [
            (setup.branch_folder(branch) / "adapter_model.safetensors").read_bytes() for branch in branches
        ]
    assert watching is not None
    assert [line.split()[0] for line in watching.told] == ["started", "started", "done", "done"], "both at once"
    assert weights["cluster"] == weights["here"]
