"""`axolotl paft demo --quick` as a user runs it: interrupted, gone on with, finished, run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft_plugin.demo.configs import QUICK_DEMO

pytestmark = pytest.mark.slow
LIMIT = 1200  # seconds, only so that a hang ends
ASKED = ["skill", "words", "untouched", "style"]
ARMS = ["base", "sft", "sft-l1", "dpo", "parallel-ties", "paft-ties"]


def demo(run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "axolotl.cli.main", "paft", "demo", "--quick", "--output-dir", str(run_dir)]


def processes_of(run_dir: Path) -> Iterator[str]:
    """Command lines that name `run_dir`."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(run_dir) in command:
            yield command


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for orphans in /proc")
def test_the_quick_demo_is_interrupted_goes_on_and_ends_with_every_arm(tmp_path: Path) -> None:
    run_dir = tmp_path / "a demo + more"
    interrupt_once_training_runs(run_dir)
    first = subprocess.run(demo(run_dir), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]

    check_results(run_dir)
    check_readme(run_dir)
    check_fused_model(run_dir)

    # The sparse branch proves itself to the recipe by its paft.json, the dense one does not.
    # Libraries warn of their own in the same log, but not at the start of a line, as we do.
    assert "\nWarning: " not in (run_dir / "logs" / "fuse-paft-ties.log").read_text()
    assert "has no paft.json" in (run_dir / "logs" / "fuse-parallel-ties.log").read_text()

    again = subprocess.run(demo(run_dir), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert again.returncode == 0
    assert "start " not in again.stdout  # nothing runs twice


def interrupt_once_training_runs(run_dir: Path) -> None:
    process = subprocess.Popen(demo(run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT
    while not (run_dir / "logs" / "sft-l1.log").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Interrupted" in errors
    assert list(processes_of(run_dir)) == []


def check_results(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    assert results["schema"] == 3
    assert {*ASKED, "preference", "sft_nll", "kl_to_base"} <= {measure["name"] for measure in results["measures"]}
    assert (results["skills"], results["preferences"]) == (["skill"], ["preference"])
    assert results["thresholds"] == ["1e-05", "0.001"]
    arms = {arm["arm"]: arm for arm in results["arms"]}
    assert list(arms) == ARMS == list(QUICK_DEMO.arms)
    for name, arm in arms.items():
        for measure in ASKED:
            assert 0 <= arm["scores"][measure] <= 1, (name, measure)
            assert arm["n"][measure] == QUICK_DEMO.items
        assert (run_dir / arm["model"]).is_dir()
        assert not Path(arm["model"]).is_absolute()
        assert set(arm["sparsity"]) == {"1e-05", "0.001"}
    # What must hold for the demo to show anything at all: both branches learn, and the penalty makes its delta sparse.
    assert arms["base"]["scores"]["skill"] < 0.4 < 0.8 < arms["sft-l1"]["scores"]["skill"]
    assert arms["base"]["scores"]["preference"] == 0 < 1 < arms["dpo"]["scores"]["preference"]
    assert arms["base"]["scores"]["style"] < 0.2 < 0.8 < arms["dpo"]["scores"]["style"]
    assert arms["sft-l1"]["sparsity"]["1e-05"] > 0.8 > 0.1 > arms["sft"]["sparsity"]["1e-05"]


def check_readme(run_dir: Path) -> None:
    readme = (run_dir / "README.md").read_text()
    for arm in ARMS:
        assert f"| {arm} " in readme
    for command in (
        "paft_plugin.pipeline.train configs/sft-l1.yml",
        "axolotl paft fuse models/paft-ties --base base",
    ):
        assert command in readme


def check_fused_model(run_dir: Path) -> None:
    folder = run_dir / "models" / "paft-ties"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "copy abc"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=16)[0, prompt["input_ids"].shape[1] :]
    assert "abc" in tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_an_output_folder_that_cannot_be_is_one_clear_line(where: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    target = file if where == "a file" else file / "demo"
    run = subprocess.run(demo(target), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert str(file) in run.stderr
    assert file.read_text() == "mine"
