"""A whole run that is killed at every stage boundary and at random moments ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import psutil
import pytest

from paft_plugin.files import file_digest
from paft_plugin.runner.markers import read_marker
from tests.pipeline.runs import write_run

pytestmark = pytest.mark.slow
LIMIT = 1200.0  # seconds, only so that a hang ends
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Attempt:
    """One `axolotl paft run`, to be killed; its lines come as they are printed."""

    def __init__(self, file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paft_plugin.cli", "run", str(file)],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.seen: list[str] = []
        self.stages_killed = 0
        self._lines: Queue[str | None] = Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def lines(self) -> Iterator[str]:
        """Each line as it comes, to the end of the run."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=1)
            except Empty:
                continue
            if line is None:
                return
            self.seen.append(line)
            yield line
        pytest.fail(f"no end in sight: {self.seen[-5:]}")

    def kill(self) -> None:
        """As a power cut would: nobody is asked."""
        self.process.kill()
        self.process.wait(LIMIT)

    def kill_a_stage(self) -> None:
        """As the kernel does when memory is short: the process of one stage, which then fails; what does not need it goes on."""
        try:
            guards = [
                child
                for child in psutil.Process(self.process.pid).children()
                if "guard.py" in " ".join(child.cmdline())
            ]
            [command, *_] = [command for guard in guards for command in guard.children()[:1]]
            command.kill()
            self.stages_killed += 1
        except (ValueError, psutil.NoSuchProcess):  # between two stages, or the stage ended while it was looked for
            self.kill()


def outcome(run_dir: Path) -> dict[str, str]:
    """Everything that a run is for: fingerprints of its stages, and what came out of them."""
    found = {}
    for marker in sorted((run_dir / ".stages").glob("*.json")):
        stage = read_marker(run_dir, marker.stem)
        assert stage is not None
        found[f"stage {stage.name}"] = stage.fingerprint
    for pattern in ("branches/*/*.safetensors", "models/*/*.safetensors"):
        found |= {str(path.relative_to(run_dir)): file_digest(path) for path in sorted(run_dir.glob(pattern))}
    for pattern in ("models/*/recipe.yml", "inspection/*/inspection.json"):
        for path in sorted(run_dir.glob(pattern)):
            found[str(path.relative_to(run_dir))] = path.read_text().replace(str(run_dir), "")
    for path in sorted(run_dir.glob("scores/*/scores.json")):
        for arm, score in json.loads(path.read_text())["scores"].items():
            found[f"score of {arm}"] = json.dumps({key: value for key, value in score.items() if key != "seconds"})
    return found


def run_with_kills(file: Path) -> list[str]:
    """Kill a run at the end of each stage, and in each (in trainings four times) at a random moment; returns what was done."""
    rng = random.Random(0)
    kills: list[str] = []
    ends: set[str] = set()
    left: dict[str, int] = {}
    while True:
        attempt = Attempt(file)
        for line in attempt.lines():
            word, _, what = line.partition(" ")
            what = what.split(" (")[0].strip()
            if word == "done" and what not in ends and attempt.process.poll() is None:
                ends.add(what)
                attempt.kill()
                kills.append(f"at the end of {what}")
            elif word == "start" and left.setdefault(what, 4 if what.startswith("train") else 1):
                left[what] -= 1
                time.sleep(rng.uniform(0, 12 if what.startswith("train") else 6))
                hit = rng.choice([attempt.kill, attempt.kill_a_stage])
                if attempt.process.poll() is None:
                    hit()
                    kills.append(f"{hit.__name__} in {what}")
            if attempt.process.poll() is not None:  # at once the next one, which meets what this one left behind
                break
        code = attempt.process.wait(LIMIT)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL or (code == 2 and attempt.stages_killed), "\n".join(attempt.seen)


def processes_of(folder: Path) -> list[str]:
    return [
        " ".join(p.info["cmdline"])
        for p in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(p.info["cmdline"] or [])
    ]


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_left_alone(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "left + alone", tmp_path / "killed + often"
    subprocess.run(
        [sys.executable, "-m", "paft_plugin.cli", "run", str(write_run(undisturbed, output_dir="."))],
        env=os.environ | ENVIRONMENT,
        check=True,
        timeout=LIMIT,
        capture_output=True,
    )
    kills = run_with_kills(write_run(killed, output_dir="."))
    print(*kills, sep="\n")
    assert len(kills) >= 20, kills
    assert processes_of(killed) == []
    left_alone, survived = outcome(undisturbed), outcome(killed)
    stages = {name for name in left_alone if name.startswith("stage ")}
    assert survived.keys() == left_alone.keys()
    assert len(stages) >= 9
    assert survived == left_alone
