"""A fusion that is merged in memory scores, item by item, what the merged model on disk would, and is scored once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paft_plugin.commands.fuse import fuse
from paft_plugin.errors import run_request
from paft_plugin.evaluation.held_out_rows import write_rows
from paft_plugin.evaluation.results import ScoresFile
from paft_plugin.evaluation.score import main as score
from paft_plugin.files import write_json
from paft_plugin.search.bench import FusedModel
from paft_plugin.search.fused import FusedRequest, score_fusions, work
from tests.evaluation.rows import random_rows

FUSIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ties-weighted": (("sft", "preference"), {"density": 0.3, "weight": {"sft": 0.4, "preference": 1.1}}),
    "dare_ties": (("preference", "sft"), {"density": 0.4}),
    "task_arithmetic": (("sft", "whole"), {"scale": 0.8, "filter": ["q_proj:weight-sft=0.5"]}),
}
FOLDERS = {"sft": "sft", "preference": "preference", "whole": "preference"}
SEED = 5


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with held-out rows, what is measured, and the base's scores."""
    folder = tmp_path_factory.mktemp("run")
    rows = random_rows()
    write_rows(folder / "held_out" / "sft.jsonl", some_for_validation(rows.answers["sft"]))
    write_rows(folder / "held_out" / "preference.jsonl", some_for_validation(rows.pairs["dpo"]))
    tasks = {"tasks": str(world / "test_tasks"), "measures": {"first": {}, "second": {}}}
    write_json(
        folder / "measures.json", {"device": "cpu", "batch_size": 4, "keep_texts": True, "validation": True, **tasks}
    )
    assert score([*options(folder), f"base={world / 'base'}"]) == 0
    return folder


def some_for_validation(rows: Sequence[Any]) -> list[Any]:
    return [row.model_copy(update={"split": "validation" if place < 3 else "test"}) for place, row in enumerate(rows)]


def options(run: Path) -> list[str]:
    """Of the stage that scores models on disk."""
    there = ["--measures", str(run / "measures.json"), "--output-dir", str(run / "scores")]
    return [*there, "--held-out", str(run / "held_out"), "--sft", "sft", "--preference", "preference"]


def request_in(run: Path, world: Path, **more: Any) -> FusedRequest:
    names = dict.fromkeys(branch for branches, _ in FUSIONS.values() for branch in branches)
    asked = {
        "base": world / "base",
        "branches": {name: {"role": role(name), "folder": world / name} for name in names},
        "fusions": [
            {"arm": arm, "branches": branches, "method": arm.partition("-")[0], "settings": settings, "seed": SEED}
            for arm, (branches, settings) in FUSIONS.items()
        ],
        "measures": run / "measures.json",
        "held_out": run / "held_out",
        "sft": ["sft"],
        "preference": ["preference"],
        "base_scores": run / "scores" / "base",
        "scores": run / "scores",
        **more,
    }
    return FusedRequest.model_validate(asked)


def role(branch: str) -> str:
    return "sft" if branch == "sft" else "preference"


def on_disk(run: Path, world: Path, arm: str) -> None:
    """`axolotl paft fuse`, and the stage that scores what it writes: under the arm's name with `-written`."""
    branches, settings = FUSIONS[arm]
    words = [word for name in branches for word in ("--branch", f"{name}={world / name},role={role(name)}")]
    for key, value in settings.items():
        each = [f"{name}={own}" for name, own in value.items()] if isinstance(value, dict) else value
        words += [word for one in (each if isinstance(each, list) else [each]) for word in (f"--{key}", str(one))]
    folder = run / "models" / arm
    words += ["--method", arm.partition("-")[0], "--seed", str(SEED), "--quiet"]
    found = CliRunner().invoke(fuse, [str(folder), "--base", str(world / "base"), *words])
    assert found.exit_code == 0, found.output
    assert score([*options(run), "--base-scores", str(run / "scores" / "base"), f"{arm}-written={folder}"]) == 0


def test_scores_and_items_are_those_of_the_model_on_disk_to_the_last_bit(run: Path, world: Path) -> None:
    score_fusions(request_in(run, world))
    seen = set()
    for arm in FUSIONS:
        on_disk(run, world, arm)
        here, there = (run / "scores" / name for name in (arm, f"{arm}-written"))
        assert (here / "items.jsonl").read_bytes() == (there / "items.jsonl").read_bytes()
        ours, theirs = (ScoresFile.read(folder / "scores.json") for folder in (here, there))
        assert ours.measures == theirs.measures
        score_here, score_there = ours.scores[arm], theirs.scores[f"{arm}-written"]
        assert score_here.model_copy(update={"seconds": score_there.seconds}) == score_there
        assert score_here.n["sft_nll_validation"] == 3
        assert score_here.n["sft_nll"] == 6
        seen.add((here / "items.jsonl").read_bytes())
    assert len(seen) == len(FUSIONS)  # or the comparison would say nothing


def test_what_is_scored_of_the_same_contents_is_not_scored_again(
    run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the second, cut off in the third's files, one that is added, one that changes, other branches."""
    merged: list[int] = []
    become = FusedModel.become
    monkeypatch.setattr(FusedModel, "become", lambda *given: (merged.append(given[2]), become(*given)))

    def again(**more: Any) -> int:
        merged.clear()
        score_fusions(request_in(run, world, scores=tmp_path / "scores", **more))
        return len(merged)

    assert again() == 3
    assert again() == 0
    (tmp_path / "scores" / "dare_ties" / "scores.json").unlink()
    scores = tmp_path / "scores" / "task_arithmetic" / "scores.json"
    scores.write_text(scores.read_text()[:-9])
    assert again() == 2
    fusions = [fusion.model_dump(mode="json") for fusion in request_in(run, world).fusions]
    more = {**fusions[1], "arm": "dare_ties-again", "seed": 6}
    assert again(fusions=[*fusions, more]) == 1
    assert merged == [6]
    fusions[0]["settings"]["density"] = 0.4
    assert again(fusions=[*fusions, more]) == 1
    other = {name: {"role": role(name), "folder": world / folder} for name, folder in FOLDERS.items()}
    assert again(branches=other) == 3


def test_one_that_cannot_be_merged_costs_no_other_and_is_said(
    run: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = [fusion.model_dump(mode="json") for fusion in request_in(run, world).fusions]
    one = {**one, "method": "task_arithmetic", "settings": {"weight": 1e39}}
    request = request_in(run, world, scores=tmp_path / "scores", fusions=[one, two])
    (tmp_path / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
    assert run_request([str(tmp_path / "request.json")], "paft_plugin.search.fused", work) == 2
    assert "ties-weighted" in capsys.readouterr().err
    assert not (tmp_path / "scores" / "ties-weighted" / "scores.json").exists()
    assert (tmp_path / "scores" / "dare_ties" / "scores.json").is_file()
