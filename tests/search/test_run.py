"""A whole search on a tiny model: never worse than the defaults, the same again, and recipes that merge to what was scored."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from paft_plugin.cli import paft
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.candidates import Candidate
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.evaluation.held_out_rows import AnswerRow, HeldOutRow, PairRow, Split
from paft_plugin.evaluation.held_out_rows import write_rows as write_held_out_rows
from paft_plugin.evaluation.held_out_scores import HeldOutScorer, read_held_out, summarised
from paft_plugin.evaluation.likelihood import AnswerModel
from paft_plugin.evaluation.scorer import Scorer
from paft_plugin.fusion.merge import open_fusion, write_fusion
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.pipeline.arms import search_request
from paft_plugin.search import run as running
from paft_plugin.search.bench import FusedModel
from paft_plugin.search.report import Outcome, merge_commands, pareto_front, recipe_name, table
from paft_plugin.search.run import run_search
from paft_plugin.search.space import DEFAULTS
from paft_plugin.search.study import locked
from paft_plugin.search.validation import open_goals
from tests.evaluation.models import load
from tests.search.outputs import trials

NAMES = ["first", "second"]
Write = Callable[..., Path]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def searched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a search of 12 trials."""
    folder = tmp_path_factory.mktemp("searched")
    file = folder / "paft.yml"
    content = {
        **{name: str(world / name) for name in ("base", "sft", "preference")},
        "output_dir": "out",
        "search": {
            "tasks": str(world / "tasks"),
            "test_tasks": str(world / "test_tasks"),
            "objectives": NAMES,
            "trials": 12,
            "device": "cpu",
        },
    }
    file.write_text(json.dumps(content))  # JSON is YAML
    run_search(search_request(file), quiet())
    return folder


def test_the_defaults_are_tried_first_and_the_front_covers_them(searched: Path) -> None:
    found = trials(searched / "out")
    assert [trial["number"] for trial in found] == list(range(1, 13))
    assert [trial["method"] for trial in found if trial["is_default"]] == list(DEFAULTS)
    scores = [tuple(trial["scores"].values()) for trial in found]
    assert len(set(scores)) > 4  # or this would say nothing
    assert [trial["number"] - 1 for trial in found if trial["on_front"]] == pareto_front(scores, [True, True])
    front = [tuple(trial["scores"].values()) for trial in found if trial["on_front"]]
    for default in scores[: len(DEFAULTS)]:
        assert any(all(a >= b for a, b in zip(row, default, strict=True)) for row in front)


def test_recipes_are_those_of_the_front_and_merge_to_the_scores_of_their_trial(
    searched: Path, world: Path, tmp_path: Path
) -> None:
    output = searched / "out" / "search"
    front = [trial for trial in trials(searched / "out") if trial["on_front"]]
    assert sorted(str(path.relative_to(output)) for path in (output / "recipes").iterdir()) == sorted(
        trial["recipe"] for trial in front
    )
    for trial in front:
        folder = tmp_path / str(trial["number"])
        drawn = []
        for seed in range(42, 42 + trial["draws"]):
            write_fusion(open_fusion(output / trial["recipe"], seed, "cpu"), folder / str(seed))
            _, tasks = open_goals({name: MeasureConfig() for name in NAMES}, world / "tasks")
            scored = Scorer(load(Candidate("x", folder / str(seed)), batch_size=64), tasks).score()
            drawn.append([scored[name].values["acc,none"] for name in NAMES])
        assert [fmean(column) for column in zip(*drawn, strict=True)] == pytest.approx(list(trial["scores"].values()))
        assert trial["draws"] == (5 if METHODS[trial["method"]].drops_at_random else 1)


def test_the_same_search_elsewhere_finds_the_same(searched: Path, tmp_path: Path) -> None:
    shutil.copy(searched / "paft.yml", tmp_path)
    run_search(search_request(tmp_path / "paft.yml"), quiet())
    assert trials(tmp_path / "out") == trials(searched / "out")
    plots = [(folder / "out" / "search" / "front.png").read_bytes() for folder in (searched, tmp_path)]
    assert plots[0] == plots[1]
    assert plots[0].startswith(b"\x89PNG")


def test_more_trials_go_on_where_fewer_ended(searched: Path, tmp_path: Path) -> None:
    shutil.copy(searched / "paft.yml", tmp_path)
    run_search(search_request(tmp_path / "paft.yml"), quiet(), trials=6)
    assert len(trials(tmp_path / "out")) == 6
    run_search(search_request(tmp_path / "paft.yml"), quiet())
    assert trials(tmp_path / "out") == trials(searched / "out")
    assert (
        run_search(search_request(tmp_path / "paft.yml"), quiet(), trials=6).trials[-1].number == 12
    )  # none is forgotten


def test_the_readme_and_the_table_say_it_in_80_columns(searched: Path) -> None:
    console = quiet()
    outcome = run_search(search_request(searched / "paft.yml"), console)  # finished: it only says again what was found
    console.print(table(outcome))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text.split("Loading")[1].partition("\n")[2]
    readme = (searched / "out" / "search" / "README.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")] for line in readme.splitlines()]
    for trial in outcome.front:
        assert any(row[2:4] == [str(trial.number), trial.method] for row in cells)
    assert f"trial-{outcome.start.number:03d}-" in readme  # type: ignore[union-attr]
    assert "--include_path" in readme
    assert "front.png" in readme


def test_one_objective_has_one_winner(paft_yml: Write, tmp_path: Path) -> None:
    outcome = run_search(
        search_request(paft_yml(objectives=("second",), methods=["ties", "linear"], trials=4)), quiet()
    )
    (winner,) = outcome.front
    assert winner.scores == max(trial.scores for trial in outcome.trials)
    assert [path.stem for path in (tmp_path / "output" / "search" / "recipes").iterdir()] == [
        f"trial-{winner.number:03d}-{winner.method}"
    ]
    assert (tmp_path / "output" / "search" / "front.png").is_file()


def test_other_inputs_in_the_same_place_are_refused(paft_yml: Write) -> None:
    run_search(search_request(paft_yml(methods=["linear"], trials=1)), quiet())
    for change, said in (
        ({"seed": 1}, "the seed"),
        ({"limit": 5}, "the limit"),
        ({"methods": {"linear": {"scale": [0.5, 2]}}}, "the methods or their ranges"),
        ({"objectives": {"first": {"direction": "minimize"}, "second": {}}}, "the objectives"),
    ):
        with pytest.raises(PaftError, match=f"other inputs: .*{said}"):
            run_search(search_request(paft_yml(**{"methods": ["linear"], "trials": 1, **change})), quiet())


def test_branches_that_do_not_belong_and_tasks_that_are_tests_are_said_before_anything_is_loaded(
    paft_yml: Write, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_try_all", lambda *_: pytest.fail("searched in spite of it"))
    with pytest.raises(PaftError, match="has only test items"):
        run_search(search_request(paft_yml(tasks=str(world / "test_tasks"), test_tasks=None)), quiet())
    (tmp_path / "empty").mkdir()
    file = paft_yml()
    file.write_text(file.read_text().replace(str(world / "sft"), str(tmp_path / "empty")))
    with pytest.raises(PaftError, match=r"empty: no config\.json, so no model"):
        run_search(search_request(file), quiet())
    assert not (tmp_path / "output").exists()


def test_a_second_search_in_the_same_place_is_refused_before_it_loads_anything(
    paft_yml: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FusedModel, "__init__", lambda *_: pytest.fail("loaded in spite of it"))
    with locked(tmp_path / "output" / "search"), pytest.raises(PaftError, match="another search is at work"):
        run_search(search_request(paft_yml()), quiet())


def test_at_the_command_line_a_mistake_is_a_line_and_exit_code_2(paft_yml: Write, tmp_path: Path) -> None:
    for arguments, said in (
        (["nowhere.yml"], "nowhere.yml: no such file"),
        ([str(paft_yml(trails=3))], "search.trails: no such key. Did you mean trials?"),
        ([str(paft_yml()), "--trials", "2"], f"--trials: 2 is fewer than the {len(DEFAULTS)} methods"),
    ):
        result = CliRunner().invoke(paft, ["search", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr
        assert "Traceback" not in result.output
    assert not (tmp_path / "output").exists()


def test_a_number_that_lm_eval_does_not_report_is_said(paft_yml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Scorer.score
    monkeypatch.setattr(
        Scorer, "score", lambda self: {name: replace(one, values={"f1,none": 1.0}) for name, one in score(self).items()}
    )
    with pytest.raises(PaftError, match=r"objectives\.second: lm-eval reports no acc,none, but f1,none"):
        run_search(search_request(paft_yml()), quiet())


def test_without_the_extra_it_says_what_to_install(paft_yml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "find_spec", lambda _: None)
    with pytest.raises(PaftError, match=r"needs optuna: pip install 'paft-plugin\[search\]'"):
        run_search(search_request(paft_yml()), quiet())


def test_ctrl_c_ends_after_the_running_trial_and_a_timeout_after_its_time(
    paft_yml: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become = FusedModel.become
    merges: list[Path] = []

    def interrupted(model: FusedModel, recipe: Path, seed: int) -> None:
        merges.append(recipe)
        become(model, recipe, seed)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FusedModel, "become", interrupted)
    signal.signal(signal.SIGINT, before := signal.default_int_handler)  # a shell's background job ignores it
    with pytest.raises(KeyboardInterrupt):
        run_search(search_request(paft_yml()), quiet())
    assert signal.getsignal(signal.SIGINT) is before
    assert len(merges) == 1
    assert [trial["on_front"] for trial in trials(tmp_path / "output")] == [True]
    assert (tmp_path / "output" / "search" / "front.png").is_file()

    monkeypatch.setattr(FusedModel, "become", become)
    outcome = run_search(search_request(paft_yml()), quiet(), timeout=1e-9)
    assert len(outcome.trials) == 1


def test_a_model_that_changes_during_a_search_is_said(paft_yml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, looks = running._branch_inputs, iter("12")
    monkeypatch.setattr(running, "_branch_inputs", lambda request: {**inputs(request), "the base model": next(looks)})
    with pytest.raises(PaftError, match="the base model changed during the search"):
        run_search(search_request(paft_yml()), quiet(), timeout=1e-9)


def test_what_drops_by_chance_is_compared_by_the_mean_of_its_draws(paft_yml: Write, tmp_path: Path) -> None:
    file = paft_yml(methods=["dare_ties", "linear"], trials=3, merge_seeds=3)
    run_search(search_request(file), quiet())
    found = {trial["number"]: trial for trial in trials(tmp_path / "output")}
    drawn = [trial for trial in found.values() if trial["draws"] == 3]
    assert 1 in [trial["number"] for trial in drawn], "a method's defaults are drawn again, on the front or not"
    assert all(trial["method"] == "dare_ties" and set(trial["spread"]) == set(NAMES) for trial in drawn)
    assert any(value > 0 for trial in drawn for value in trial["spread"].values()), "or this would say nothing"
    assert not [
        trial for trial in found.values() if trial["on_front"] and trial["method"] == "dare_ties" and trial["draws"] < 3
    ]
    again = quiet()
    run_search(search_request(file), again)
    assert {trial["number"]: trial for trial in trials(tmp_path / "output")} == found, "nothing is drawn twice"


@pytest.mark.slow
def test_several_devices_try_several_settings_at_once(paft_yml: Write, tmp_path: Path) -> None:
    file = paft_yml(methods=["ties", "dare_ties"], trials=6, device=["cpu", "cpu"], merge_seeds=2)
    run_search(search_request(file), quiet())
    found = trials(tmp_path / "output")
    assert [trial["number"] for trial in found] == list(range(1, 7))
    assert len({json.dumps([trial["method"], trial["options"]]) for trial in found}) == 6
    alone = paft_yml(tmp_path / "alone", methods=["ties", "dare_ties"], trials=2, merge_seeds=2)
    run_search(search_request(alone), quiet())
    assert trials(tmp_path / "alone")[:2] == [
        {**trial, "on_front": one["on_front"], "recipe": one["recipe"]}
        for trial, one in zip(found[:2], trials(tmp_path / "alone"), strict=True)
    ], "the same scores, wherever they are found"


def test_the_space_grows_with_the_branches_alone(world: Path, tmp_path: Path) -> None:
    names = {"math": "sft", "code": "sft", "taste": "preference"}
    folders = dict(zip(names, ("sft", "whole", "preference"), strict=True))
    content = {
        "base": str(world / "base"),
        "branches": {name: {"trained": str(world / folders[name]), "role": role} for name, role in names.items()},
        "output_dir": "out",
        "search": {
            **{"tasks": str(world / "tasks"), "objectives": NAMES, "device": "cpu"},
            **{"methods": ["task_arithmetic", "dare_linear"], "trials": 5, "merge_seeds": 1},
        },
    }
    (tmp_path / "paft.yml").write_text(json.dumps(content))
    run_search(search_request(tmp_path / "paft.yml"), quiet())
    found = trials(tmp_path / "out")
    weights = {f"weight.{name}" for name in names}
    densities = {f"density.{name}" for name in names}
    wanted = {"task_arithmetic": weights, "dare_linear": weights | densities}
    assert [set(trial["options"]) for trial in found] == [
        set() if trial["is_default"] else wanted[trial["method"]] for trial in found
    ]
    recipe = next((tmp_path / "out" / "search" / "recipes").iterdir()).read_text()
    assert all(str(world / folder) in recipe for folder in folders.values())


def write_held_out(folder: Path, vocabulary: int = 40) -> None:
    """Rows of both splits for the world's two branches; of the test split there are more."""
    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(6, vocabulary) for _ in range(count))

    kept: dict[str, list[HeldOutRow]] = {"sft": [], "preference": []}
    for number in range(30):
        split: Split = "validation" if number % 3 == 0 else "test"
        common: dict[str, Any] = {"id": str(number), "split": split, "source": "rows", "prompt": tokens(5)}
        kept["sft"].append(AnswerRow(**common, answer=tokens(3)))
        kept["preference"].append(PairRow(**common, chosen=tokens(4), rejected=tokens(4)))
    for name, rows in kept.items():
        write_held_out_rows(folder / "held_out" / f"{name}.jsonl", rows)


def test_without_objectives_it_searches_on_the_rows_that_the_run_held_out_for_validation(
    paft_yml: Write, world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    write_held_out(output)
    file = paft_yml(objectives=[], tasks=None, test_tasks=None, methods=["task_arithmetic"], trials=3)
    outcome = run_search(search_request(file), quiet())
    assert [goal.name for goal in outcome.goals] == ["sft_match", "preference", "retained"]
    assert outcome.items == {"held_out/sft": 10, "held_out/preference": 10, "held_out/retained": 10}
    base = load(Candidate("base", world / "base"), batch_size=4, chat_template=False)
    held = output / "held_out"
    rows, _ = read_held_out(held, ["sft"], ["preference"], split="validation")
    _, kept = HeldOutScorer(AnswerModel(base.model, 4), base.tokenizer, rows).score_base()
    for trial in outcome.front:
        write_fusion(
            open_fusion(output / "search" / "recipes" / f"{recipe_name(trial)}.yml", 42, "cpu"),
            tmp_path / f"{trial.number}",
        )
        merged = load(Candidate("x", tmp_path / f"{trial.number}"), batch_size=4, chat_template=False)
        found = summarised(HeldOutScorer(AnswerModel(merged.model, 4), merged.tokenizer, rows).score(kept)).scores
        assert trial.scores == pytest.approx([found[goal.name] for goal in outcome.goals], abs=1e-5)
    with pytest.raises(PaftError, match="the objectives changed"):
        run_search(
            search_request(
                paft_yml(objectives=["sft_nll"], tasks=None, test_tasks=None, methods=["task_arithmetic"], trials=3)
            ),
            quiet(),
        )


def test_rows_and_tasks_are_searched_together(paft_yml: Write, tmp_path: Path) -> None:
    write_held_out(tmp_path / "output")
    outcome = run_search(
        search_request(paft_yml(objectives=("sft_nll", "first"), methods=["linear"], trials=1)), quiet()
    )
    assert [goal.name for goal in outcome.goals] == ["sft_nll", "first"]
    assert outcome.items["held_out/sft"] == 10
    assert len(outcome.trials[0].scores or ()) == 2


def test_without_rows_and_without_objectives_there_is_nothing_to_search_for(paft_yml: Write) -> None:
    with pytest.raises(PaftError, match=r"search\.objectives: missing, and no rows were held out"):
        run_search(search_request(paft_yml(objectives=[], tasks=None)), quiet())


def test_tasks_are_asked_as_the_run_asks_them(paft_yml: Write) -> None:
    file = paft_yml(methods=["linear"], trials=1)
    assert "--apply_chat_template" in _last_command(run_search(search_request(file), quiet()))
    plain = yaml.safe_load(file.read_text()) | {"evaluation": {"apply_chat_template": False}}
    file.write_text(yaml.safe_dump(plain))
    with pytest.raises(PaftError, match=r"other inputs: .*the task first"):
        run_search(search_request(file), quiet())
    file.write_text(yaml.safe_dump(plain | {"output_dir": str(file.with_suffix(""))}))
    assert "--apply_chat_template" not in _last_command(run_search(search_request(file), quiet()))


def _last_command(outcome: Outcome) -> list[str]:
    return merge_commands(outcome, outcome.trials[0])[-1]


def test_a_measure_of_held_out_rows_takes_no_settings(paft_yml: Write, tmp_path: Path) -> None:
    write_held_out(tmp_path / "output")
    file = paft_yml(objectives={"sft_match": {"name": "skill", "direction": "minimize"}}, tasks=None, test_tasks=None)
    with pytest.raises(PaftError, match=r"objectives\.sft_match: .* takes no settings\. Leave out direction, name\."):
        run_search(search_request(file), quiet())
