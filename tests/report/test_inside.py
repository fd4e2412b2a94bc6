"""A run's folder from somebody else is input: whatever its files and links name, nothing outside of it is written or shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from paft_plugin.cli import paft
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import RUN_FILE
from paft_plugin.evaluation.results import RESULTS
from paft_plugin.files import below, inside
from paft_plugin.runner.lock import LOCK, look

MakeRun = Callable[..., Path]
HIDDEN = "what nobody may see"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, links not followed."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder beside the run with what a fused model's folder has."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("mergekit_config.yml", "README.md", "trials.json", "front.png", "sft.log"):
        (folder / name).write_text(f"## Provenance\n{HIDDEN}\n")
    return folder


def in_results(run: Path, model: str) -> None:
    """Have every arm of `results.json` name `model` as its folder, and nothing that could write it anew."""
    (run / RUN_FILE).unlink(missing_ok=True)
    results = json.loads((run / RESULTS).read_text())
    for arm in results["arms"]:
        arm["model"] = model
    (run / RESULTS).write_text(json.dumps(results))


@pytest.mark.parametrize("name", ["absolute", "above", "link"])
def test_no_card_is_written_where_results_json_says(name: str, make_run: MakeRun, elsewhere: Path) -> None:
    run = make_run()
    (run / "link").symlink_to(elsewhere)
    in_results(run, {"absolute": str(elsewhere), "above": "models/../../elsewhere", "link": "link"}[name])
    before = snapshot(elsewhere)
    result = CliRunner().invoke(paft, ["report", str(run)])
    assert result.exit_code == (0 if name == "absolute" else 2), result.output  # an arm from elsewhere gets no card
    assert isinstance(result.exception, (SystemExit, type(None)))
    assert snapshot(elsewhere) == before


@pytest.mark.parametrize("place", ["report", "models", "branches"])
def test_no_link_leads_a_report_or_a_diagnosis_out(place: str, make_run: MakeRun, elsewhere: Path) -> None:
    run = make_run()
    if (run / place).exists():
        (run / place).rename(elsewhere / place)
    target = elsewhere / place
    target.mkdir(exist_ok=True)
    (run / place).symlink_to(target)
    before = snapshot(elsewhere)
    result = CliRunner().invoke(paft, ["report", str(run)])
    assert result.exit_code in (0, 2), result.output
    assert isinstance(result.exception, (SystemExit, type(None)))
    assert snapshot(elsewhere) == before


@pytest.mark.parametrize("place", ["search/trials.json", "logs/sft.log"])
def test_a_linked_file_is_not_shown(place: str, make_run: MakeRun, elsewhere: Path) -> None:
    run = make_run()
    link = run / place
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(elsewhere / link.name)
    result = CliRunner().invoke(paft, ["report", str(run)])
    assert result.exit_code == 2
    assert "leads out of the folder" in result.output
    assert HIDDEN not in result.output


@pytest.mark.parametrize("name", ["../elsewhere/sft", "/etc/passwd", ".hidden", "a/b", "a\0b", ""])
def test_events_name_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    start = {"schema": 1, "time": "2026-01-01T00:00:00.000+00:00", "run": "r"}
    stage = {"name": name, "title": "x", "needs": [], "reason": ""}
    lines = [
        {**start, "event": "run_started", "pid": 1, "host": "x", "version": ""},
        {**start, "event": "planned", "stages": [stage]},
        {**start, "event": "stage_failed", "stage": name, "reason": "x"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = tmp_path / "logs" / f"{name}.log".replace("\0", "")
    if name and not name.startswith("/"):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(HIDDEN)
    result = CliRunner().invoke(paft, ["status", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert HIDDEN not in result.output


@pytest.mark.parametrize("name", ["events.jsonl", "lock", "both"])
def test_a_fifo_in_a_run_s_folder_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).parent.mkdir(exist_ok=True)
    for file in {"events.jsonl": ["events.jsonl"], "lock": [LOCK]}.get(name, ["events.jsonl", LOCK]):
        os.mkfifo(tmp_path / file)
    assert CliRunner().invoke(paft, ["status", str(tmp_path)]).exit_code == 2


def test_nor_is_one_where_a_log_should_be(tmp_path: Path) -> None:
    start = {"schema": 1, "time": "2026-01-01T00:00:00.000+00:00", "run": "r"}
    stage = {"name": "sft", "title": "x", "needs": [], "reason": ""}
    lines = [
        {**start, "event": "run_started", "pid": 1, "host": "x", "version": ""},
        {**start, "event": "planned", "stages": [stage]},
        {**start, "event": "stage_failed", "stage": "sft", "reason": "it broke"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs" / "sft.log")
    assert "it broke" in CliRunner().invoke(paft, ["status", str(tmp_path)]).output


@pytest.mark.parametrize("pid", ["9" * 5000, "99999999999999999999", "-1", "x", "\udcff"])
def test_no_process_id_in_a_lock_is_too_odd(pid: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).parent.mkdir(exist_ok=True)
    (tmp_path / LOCK).write_bytes(pid.encode(errors="replace") + b"\nhost\n")
    assert look(tmp_path)[1] is None


def test_what_lies_inside_is_a_path_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    assert inside(tmp_path, "link/b") == tmp_path / "link" / "b"
    assert below(tmp_path, "*") == [tmp_path / "a", tmp_path / "link"]


def test_what_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("..")
    (tmp_path / "next").symlink_to("out")
    (tmp_path / "loop").symlink_to("loop")
    for place in ("/etc", "..", "a/../../b", "a/../b", "out", "out/x", "next/x", str(tmp_path.parent), "a\0b"):
        with pytest.raises(PaftError, match="leads out"):
            inside(tmp_path, place)
    with pytest.raises(PaftError, match="leads out"):
        below(tmp_path, "n*")
