"""`results.json` is read whole, or said to be wrong by file, place and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import RunFile, arm_named
from paft_plugin.evaluation.results import ArmResult, Measure, Results, gather, read_results
from tests.report.runs import ITEMS, SCORES, results_content


def write(folder: Path, content: Any) -> Path:
    (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_everything_is_read(tmp_path: Path) -> None:
    results = read_results(write(tmp_path, results_content()))
    assert results is not None
    assert {arm.name: tuple(arm.scores.values()) for arm in results.arms} == SCORES
    assert (results.skills, results.preferences) == (("skill",), ("preference",))
    assert results.thresholds == ("1e-05", "0.001")
    assert [measure.name for measure in results.others] == ["retained"]
    paft = results.arm("paft-ties")
    assert paft is not None
    assert (paft.n["skill"], paft.sparsity["1e-05"], paft.model) == (ITEMS, 0.47, "models/paft-ties")
    assert results.arm("nobody") is None


def test_nulls_are_what_was_not_measured(tmp_path: Path) -> None:
    content = results_content()
    content["arms"][0] |= {
        "scores": {"skill": None},
        "stderr": None,
        "n": {"skill": None},
        "sparsity": None,
        "model": None,
    }
    results = read_results(write(tmp_path, content | {"skills": [], "preferences": [], "thresholds": None}))
    assert results is not None
    arm = results.arms[0]
    assert [dict(arm.scores), dict(arm.stderr), dict(arm.n), dict(arm.sparsity), arm.model] == [{}, {}, {}, {}, ""]


def test_no_file_is_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path) is None


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _: "{", "no valid JSON"),
        (lambda content: content | {"arms": [content["arms"][0] | {"sparsity": {"added": 1.0}}]}, "sparsity: "),
        (lambda _: [], "not a JSON object"),
        (lambda content: content | {"schema": 1}, "schema 1, and this version reads 3"),
        (
            lambda content: {key: value for key, value in content.items() if key != "arms"},
            "damaged (arms: Field required)",
        ),
        (
            lambda content: content | {"arms": [{"arm": "x", "scores": {"skill": "good"}}]},
            "damaged (arms.0.scores.skill",
        ),
        (lambda content: content | {"arms": []}, "no arms"),
        (lambda content: content | {"skills": ["wit"]}, "skills 'wit' is none of its measures"),
        (lambda content: content | {"arms": content["arms"][:1] * 2}, "arm 'base' is there twice"),
    ],
)
def test_a_wrong_file_is_one_clear_message(spoil: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(PaftError) as error:
        read_results(write(tmp_path, spoil(results_content())))
    assert says in str(error.value)
    assert str(tmp_path / "results.json") in str(error.value)


def test_all_contradictions_at_once(tmp_path: Path) -> None:
    with pytest.raises(PaftError) as error:
        read_results(write(tmp_path, results_content() | {"skills": ["wit"], "preferences": ["charm"]}))
    assert len(error.value.problems) == 2


def test_what_is_written_is_read(tmp_path: Path) -> None:
    results = Results.model_validate(results_content())
    results.write(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == results_content()
    assert read_results(tmp_path) == results


def test_an_arm_is_what_its_run_says_and_without_one_what_its_name_says(tmp_path: Path) -> None:
    write(tmp_path, results_content())
    alone = read_results(tmp_path)
    assert alone is not None
    assert [arm.name for arm in alone.arms if arm.arm.is_sft] == ["sft", "sft-l1"]
    assert [arm.name for arm in alone.arms if arm.arm.kind == "fused" and arm.arm.penalised] == [
        "paft-ties",
        "paft-dare_ties",
    ]
    odd = arm_named("dpo").model_copy(update={"role": "sft", "penalised": True})
    RunFile(base="base", arms=(odd,)).write(tmp_path / "configs" / "run.json")
    described = read_results(tmp_path)
    assert described is not None
    assert [arm.name for arm in described.arms if arm.arm.is_sft] == ["sft", "sft-l1", "dpo"]


def test_thresholds_are_those_of_any_arm_in_order() -> None:
    sparsities: dict[str, dict[str, float]] = {"sft": {"0.001": 1.0, "1e-06": 0.1}, "base": {}, "x": {"1e-05": 0.5}}
    arms = [ArmResult(arm=arm_named(name), sparsity=sparsity) for name, sparsity in sparsities.items()]
    assert gather([Measure("sums", "sums", "acc", "none", True)], arms).thresholds == ("1e-06", "1e-05", "0.001")


def test_what_is_measured_on_validation_items_is_kept_and_judges_nothing() -> None:
    """But for what the user names as a goal, and what is only called so without a measure on test items beside it."""
    names = ["skill", "skill_validation", "sft_match", "sft_match_validation", "other_validation"]
    measures = [Measure(name, "held_out/sft", "match", "none", True) for name in names]
    arms = [ArmResult(arm=arm_named(arm), scores=dict.fromkeys(names, 0.1 * place)) for place, arm in enumerate("ab")]
    found = gather(measures, arms)
    assert [one.name for one in found.validation] == ["skill_validation", "sft_match_validation"]
    assert {one.name for one in found.measures} == {"skill", "sft_match", "other_validation"}
    assert not any(name.startswith(("skill_v", "sft_match_v")) for name in found.goals)
    assert found.measure("skill_validation").name == "skill_validation"
    assert Results.model_validate(found.content()).validation == found.validation
    assert [one.name for one in gather(measures, arms, skills=["skill_validation"]).validation] == [
        "sft_match_validation"
    ]
