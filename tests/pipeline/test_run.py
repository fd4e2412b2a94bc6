"""`axolotl paft run` at the command line: the dry run, bad input, where things run, and what is never written."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from paft_plugin.errors import PaftError
from paft_plugin.files import write_json
from paft_plugin.pipeline import run as running
from paft_plugin.pipeline.arms import Setup, open_setup
from paft_plugin.pipeline.config import ExecutorConfig
from paft_plugin.pipeline.plan import Plan, make_plan
from paft_plugin.pipeline.run import make_executor, prepare, run_pipeline, show_results, variables
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.scheduler import StagesFailedError
from tests.cli import call
from tests.deltas.builders import make_adapter
from tests.pipeline.hub import FakeHub
from tests.pipeline.runs import edit, write_run


def test_the_dry_run_shows_stages_reasons_disk_and_commands_and_writes_nothing(tmp_path: Path, forked: None) -> None:  # noqa: ARG001
    file = write_run(tmp_path / "a run + more")
    cache = file.parent / "cache"  # where the tasks say that what they load goes
    before = sorted(file.parent.rglob("*"))
    shown = call("run", str(file), "--dry-run")
    assert [path for path in sorted(file.parent.rglob("*")) if not path.is_relative_to(cache)] == before
    for words in (
        "sft-l1",
        "train dpo (DPO)",
        "not run yet",
        "A whole run writes about",
        f"cd '{file.parent / 'out'}'",
        "python -m paft_plugin.pipeline.train configs/sft-l1.yml --launcher python",
        "axolotl paft fuse models/paft-ties --base",
        "axolotl paft report",
    ):
        assert words in shown
    assert "sequential" not in shown
    assert "train sequential (DPO)" in call("run", str(file), "--dry-run", "--sequential")
    only = call("run", str(file), "--dry-run", "--arms", "base, dpo")
    assert "fuse" not in only
    assert "sft-l1" not in only
    edit(tmp_path / "a run + more" / "sft.yml", learning_rat=1e-4)
    assert "Did you mean learning_rate?" in call("run", str(file), "--dry-run", code=2), "what would fail is said, too"


def test_bad_input_is_exit_code_2_and_all_of_it(tmp_path: Path) -> None:
    file = write_run(tmp_path, base="nowhere", fusion={"methods": ["tise"]})
    shown = call("run", str(file), code=2)
    assert shown.count("Error: ") == 2
    assert "Did you mean ties?" in shown
    assert not (tmp_path / "out").exists()
    assert "no such file" in call("run", str(tmp_path / "gone.yml"), code=2)
    file = write_run(tmp_path / "b")
    assert "arm paft-tise: there is none. Did you mean paft-ties?" in call(
        "run", str(file), "--arms", "paft-tise", code=2
    )


def test_a_mistake_beside_a_remote_base_is_said_before_it_is_downloaded(tmp_path: Path, hub: FakeHub) -> None:
    file = write_run(tmp_path, base="org/model", preference="gone.yml")
    shown = call("run", str(file), code=2)
    assert "gone.yml: no such file" in shown
    assert hub.asked == []
    write_run(tmp_path, base="org/model")
    assert "no model org/model on the hub" in call("run", str(file), code=2)


def test_what_preflight_finds_stops_the_run_before_it_writes(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    edit(tmp_path / "sft.yml", plugins=None)
    edit(
        tmp_path / "dpo.yml", datasets=[{"path": "data/sft.jsonl", "ds_type": "json", "type": "chat_template.default"}]
    )
    shown = call("run", str(file), code=2)
    assert "paft_plugin.PAFTPlugin" in shown
    assert "sft.jsonl" in shown
    assert not (tmp_path / "out").exists()


def test_where_a_run_runs_is_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    executor = make_executor(ExecutorConfig(kind="local", workers=3, threads=2, devices=[], share_device="never"))
    assert isinstance(executor, LocalExecutor)
    assert (executor.machine.workers, executor.machine.devices) == (3, ())
    with pytest.raises(PaftError, match="7"):
        make_executor(ExecutorConfig(kind="local", devices=["7"]))


def test_no_network_unless_the_config_names_something_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "AXOLOTL_DO_NOT_TRACK", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
    file = write_run(tmp_path)
    assert variables(open_setup(file)) == {
        "TOKENIZERS_PARALLELISM": "false",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    edit(tmp_path / "sft.yml", datasets=[{"path": "org/chats", "type": "chat_template"}])
    setup = open_setup(file)
    assert setup.remote == ["org/chats"]
    assert "HF_HUB_OFFLINE" not in variables(setup)
    write_run(tmp_path, evaluation={"measures": ["gsm8k"]})
    assert open_setup(file).remote == ["gsm8k"]
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "0")
    assert "AXOLOTL_DO_NOT_TRACK" not in variables(open_setup(file)), "what a user has set stays"
    assert os.environ["AXOLOTL_DO_NOT_TRACK"] == "0"


def test_what_stays_the_same_is_not_written_again(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    prepare(file)
    config = tmp_path / "out" / "configs" / "sft-l1.yml"
    before = config.stat().st_mtime_ns
    prepare(file)
    assert config.stat().st_mtime_ns == before
    edit(tmp_path / "sft.yml", learning_rate=1e-3)
    prepare(file)
    assert "learning_rate: 0.001" in config.read_text()


def test_a_missed_target_is_said_under_the_table(tmp_path: Path) -> None:
    prepare(write_run(tmp_path))
    run_dir = tmp_path / "out"
    shown = io.StringIO()
    show_results(run_dir, Console(file=shown, width=100))
    assert "Warning" not in shown.getvalue()
    missed = {"target_sparsity": 0.9, "target_threshold": 1e-5, "sparsity": {"1e-05": 0.106}}
    ended = {"finished": True, "steps_penalised": 19, "history": [{"step": 19, "lambda": 2.9e-3}]}
    write_json(run_dir / "branches" / "sft-l1" / "paft.json", {"schema": 1, **missed, **ended})
    show_results(run_dir, Console(file=shown, width=100))
    assert "Warning: sft-l1: paft_target_sparsity: 0.9 was missed: 10.6%" in shown.getvalue()


@pytest.mark.slow
def test_a_branch_that_fails_leaves_the_fusions_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_run(tmp_path, fusion={"methods": ["task_arithmetic"]})
    for seed, name in enumerate(("code", "taste")):
        make_adapter(tmp_path / "base", tmp_path / name, seed=seed, size=0.01)
    done = {"code": {"trained": "code", "role": "sft"}, "taste": {"trained": "taste", "role": "preference"}}
    branches = {"math": {"config": "sft.yml", "role": "sft"}, **done}
    edit(file, sft=None, preference=None, branches=branches)

    def with_failure(setup: Setup) -> Plan:
        plan = make_plan(setup)
        stages = [replace(one, command=("false",)) if one.name == "math-l1" else one for one in plan.stages]
        return replace(plan, stages=stages)

    monkeypatch.setattr(running, "make_plan", with_failure)
    shown = io.StringIO()
    with pytest.raises(StagesFailedError, match="math-l1"):
        run_pipeline(file, Console(file=shown, width=120))
    rest = shown.getvalue().partition("What does not need it is done:")[2]
    assert "without-math-task_arithmetic" in rest
    assert "paft-task_arithmetic" not in rest
