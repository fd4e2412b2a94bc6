"""`study.yml`: every mistake at once, each with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.errors import PaftError
from paft_plugin.study.config import filled, read_configs
from paft_plugin.study.planning.plan import plan_study
from tests.study.room import Change

ASKED = {"name": "a", "one": "sft", "other": "dpo", "measure": "skill"}
DENSE = {"config": "axolotl/sft.yml", "overrides": {"plugins": None, "paft_l1_lambda": None, "seed": "$seed"}}
SQUARED = {"config": "axolotl/sft.yml", "overrides": {"paft_l1_lambda": None, "paft_l2_lambda": 0.1, "seed": "$seed"}}


def problems_of(file: Path) -> list[str]:
    with pytest.raises(PaftError) as caught:
        plan_study(file, read_configs(file))
    return [problem.removeprefix(str(file)) for problem in caught.value.problems]


def test_the_seed_stands_in_any_text() -> None:
    given = {"seed": "$seed", "path": "data/$seed/${seed}0.jsonl", "other": ["$seeds", {"it": "a $seed"}]}
    assert filled(given, 3) == {"seed": 3, "path": "data/3/30.jsonl", "other": ["$seeds", {"it": "a 3"}]}


def test_a_study_is_what_it_says_for_each_seed(study: Change) -> None:
    found = read_configs(study(description="seed $seed", seeds=[4, 7]))
    assert {seed: one.description for seed, one in found.items()} == {4: "seed 4", 7: "seed 7"}


def test_the_study_in_readme_is_one(study: Change) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"a few keys more:\n\n```yaml\n(.+?)```", readme, re.DOTALL)
    said, demo = yaml.safe_load(text), yaml.safe_load(study().read_text(encoding="utf-8"))
    for role in ("sft", "preference"):
        assert said[role]["config"] == f"{role}.yml"
        said[role] = {**demo[role], "overrides": {**demo[role]["overrides"], **said[role]["overrides"]}}
    file = study(**{**dict.fromkeys(demo), **said, "base": demo["base"], "output_dir": demo["output_dir"]})
    design = plan_study(file, read_configs(file)).design
    assert [contrast.name for contrast in design.contrasts] == ["parallel", "penalty"]
    assert design.primary == ("sft_match", "preference_gained")


@pytest.mark.parametrize(
    ("changes", "said", "line"),
    [
        ({"buget": 3}, "buget: no such key. Did you mean budget?", "buget:"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice.", "seeds:"),
        ({"seeds": []}, "seeds: ", "seeds:"),
        ({"ways": ["tis"]}, "ways: no such way of combining. Did you mean ties?", "ways:"),
        ({"controls": ["drop", "prun"]}, "controls.prun: no such key. Did you mean prune?", "- prun"),
        ({"controls": ["prune", "prune"]}, "controls: prune is there twice.", "controls:"),
        ({"controls": [{"l2": {"strengths": [1, -1]}}]}, "controls.l2.strengths.1: ", "- -1"),
        ({"controls": [{"prune": {"steps": [3]}}]}, "controls.prune.steps: no such key.", "steps:"),
        ({"curves": {"density": [0.1, 2]}}, "curves.density.1: ", "- 2"),
        ({"sft": "axolotl/sft.yml"}, "sft: is the same training for two seeds.", "sft:"),
        (
            {"contrasts": [ASKED | {"measure": "words_validation"}]},
            "contrasts.0.measure: words_validation: is what",
            "measure:",
        ),
        ({"budget": 0}, "budget: ", "budget:"),
        ({"retained": ["wrds"]}, "retained: no such measure.", "retained:"),
        ({"contrasts": [ASKED | {"measure": "wrds"}]}, "contrasts.0.measure: no such measure.", "measure: wrds"),
        ({"contrasts": [ASKED | {"one": "best:tis/l1"}]}, "contrasts.0.one: best:tis/l1: no such arm", "one:"),
        (
            {"contrasts": [ASKED | {"one": "paft-tis"}]},
            "contrasts.0.one: paft-tis: no such arm in this study. Did",
            "one:",
        ),
        ({"retained": ["words", "words"]}, "retained: words is there twice.", "retained:"),
        ({"contrasts": [ASKED | {"other": "sft"}]}, "contrasts.0: sft on both sides.", ""),
        ({"contrasts": [ASKED | {"name": "x-$seed"}]}, "contrasts: is another for each seed.", "contrasts:"),
        ({"output_dir": "out-$seed"}, "output_dir: is another for each seed.", "output_dir:"),
        ({"curves": {"density": [0.1]}, "ways": ["joint"], "controls": None}, "curves.density: none of", "density:"),
        ({"controls": ["disjoint"], "ways": ["ties"]}, "controls.disjoint: is compared with task_", "- disjoint"),
        ({"evaluation": False}, "evaluation: false: a study compares scores.", "evaluation:"),
        ({"preference": "axolotl/sft.yml"}, "preference: ", "preference:"),
        ({"sft": DENSE}, "controls.rescale_l2: asks what a penalty does, and sft's config has none.", "- rescale_l2"),
        (
            {"sft": SQUARED, "controls": None},
            "sft: its penalty has a strength that a study cannot vary.",
            "sft:",
        ),
        (
            {"compare": {"rescale_l2": "axolotl/sft.yml"}},
            "compare.rescale_l2: the study makes an arm of that",
            "rescale_l2:",
        ),
        (
            {"fusion": {"fused": {"l1-ties-2": {"branches": ["sft", "dpo"], "method": "ram"}}}},
            "fusion.fused.l1-ties-2: the study makes an arm of that",
            "l1-ties-2:",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(study: Change, changes: dict[str, Any], said: str, line: str) -> None:
    file = study(**{"contrasts": None, **changes})
    (problem,) = problems_of(file)
    number, _, rest = problem.removeprefix(":").partition(": ")
    assert rest.startswith(said)
    assert (
        file.read_text(encoding="utf-8")
        .splitlines()[int(number) - 1]
        .strip()
        .removeprefix("- name: a")
        .startswith(line)
    )


def test_an_arm_that_is_another_for_each_seed_is_refused(study: Change) -> None:
    sft = yaml.safe_load(study().read_text(encoding="utf-8"))["sft"]
    sft["overrides"]["paft_l1_lambda"] = "0.000$seed"
    (problem,) = problems_of(study(sft=sft, contrasts=None))
    assert "sft-l1" in problem
    assert "with seed 2 not what they are with seed 1" in problem


def test_no_seed_is_looked_at_that_the_study_has_not(study: Change) -> None:
    sft = yaml.safe_load(study().read_text(encoding="utf-8"))["sft"]
    (problem,) = problems_of(study(seeds=[7], contrasts=None, sft={**sft, "config": "axolotl/sft-$seed.yml"}))
    assert "sft-7.yml" in problem


def test_all_mistakes_are_told_at_once(study: Change) -> None:
    file = study(buget=3, seeds=[1, 1], ways=["tis"], curves={"density": [2]})
    assert len(problems_of(file)) == 4


def test_a_control_that_nothing_could_match_is_refused(study: Change) -> None:
    content = yaml.safe_load((study()).read_text(encoding="utf-8"))
    evaluation = {**content["evaluation"], "held_out": False}
    for changes in ({"evaluation": evaluation}, {"validation": False}):
        (problem,) = [each for each in problems_of(study(controls=["kl"], contrasts=None, **changes)) if "kl" in each]
        assert "controls.kl: is chosen by kl_to_base on validation items, and there are none" in problem
    assert read_configs(study(controls=[{"kl": {"factors": [0.5]}}], contrasts=None, evaluation=evaluation))
    measures = {key: each for key, each in evaluation["measures"].items() if each["name"] != "skill_validation"}
    evaluation |= {"measures": measures, "held_out": content["evaluation"].get("held_out")}
    asked = {"primary": ["style"], "contrasts": None, "evaluation": evaluation}
    found = problems_of(study(controls=["l2", "early_stop", "preference_l1", "prune"], **asked))
    assert [problem.partition("controls.")[2].partition(":")[0] for problem in found] == ["early_stop", "l2"]
    assert read_configs(study(controls=[{"l2": {"strengths": [0.1]}}], **asked))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ["base"]}, "arms: a study knows its arms."),
        ({"fusion": {"methods": ["linear"]}}, "fusion.methods: linear: is none of the ways"),
        ({"fusion": {"methods": ["alpha", "ties"]}}, "fusion.methods: alpha: is none of the ways"),
    ],
)
def test_what_a_study_would_not_do_is_refused(changes: dict[str, Any], says: str, study: Change) -> None:
    (problem,) = problems_of(study(**changes))
    assert says in problem


def test_what_is_judged_must_be_chosen_by_something(study: Change) -> None:
    evaluation = {
        "tasks": "evaluation/tasks",
        "measures": {"paft_skill": {"name": "skill"}, "paft_style": {"name": "style"}},
        "skill": "skill",
        "preference": "style",
    }
    found = problems_of(study(evaluation=evaluation, retained=None))
    assert [problem.partition("none is called ")[2].partition(",")[0] for problem in found] == [
        "skill_validation",
        "style_validation",
    ]
