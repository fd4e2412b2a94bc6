"""Diagnoses of planted runs: each signature where it was planted, and nowhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import RUN_FILE, Arm, RunFile
from paft_plugin.inspection.diagnosis import diagnose, signatures
from paft_plugin.inspection.diagnosis.verdict import BRANCH_CHECKS, Check, Diagnosis
from tests.inspection.planted_runs import PlantedRun, dense, proof, put, sparse

LEARNT, STUCK = (1.2, 0.8), (1.2, 1.19)
SCORES = {"sft-l1": {"sums": 0.9, "manners": 0.2}, "dpo": {"sums": 0.2, "manners": 0.9}}
RECIPE = {"paft-ties": {"sft-l1": {"weight": 1.0, "density": 0.5}, "dpo": {"weight": 1.0, "density": 0.5}}}


def healthy() -> PlantedRun:
    return PlantedRun(
        deltas={"sft": dense(1), "sft-l1": sparse(2), "dpo": dense(3)},
        losses={"sft": (1.2, 0.7), "sft-l1": LEARNT, "dpo": (0.69, 0.1)},
        proofs={"sft-l1": proof()},
        recipes=RECIPE,
        scores={**SCORES, "paft-ties": {"sums": 0.89, "manners": 0.9}},
    )


def planted() -> dict[str, tuple[PlantedRun, set[tuple[str, str]]]]:
    """Name → run, and (signature, culprit) of all that is to be found."""
    well = healthy()
    both_dense = PlantedRun({"sft": dense(1), "dpo": dense(3)}, losses={"sft": (1.2, 0.7), "dpo": (0.69, 0.1)})
    tiny = {**well.deltas, "sft-l1": dense(2, 1e-8)}
    lost = {**SCORES, "paft-ties": {"sums": 0.5, "manners": 0.9}}
    return {
        "healthy": (well, set()),
        "healthy, without scores": (replace(well, scores={}), set()),
        "healthy, without a twin": (
            replace(well, deltas={k: v for k, v in well.deltas.items() if k != "sft"}, losses={"sft-l1": LEARNT}),
            set(),
        ),
        "healthy, of a small norm": (replace(well, deltas={**well.deltas, "sft-l1": sparse(2, 0.003, 4e-3)}), set()),
        "both dense": (both_dense, set()),
        "both sparse": (replace(well, deltas={"sft": dense(1), "sft-l1": sparse(2), "dpo": sparse(3)}), set()),
        "merely small": (replace(both_dense, deltas={"sft": dense(1, 5e-6), "dpo": dense(3, 3e-6)}), set()),
        "λ far too large": (
            replace(well, deltas=tiny, losses={**well.losses, "sft-l1": STUCK}, proofs={"sft-l1": proof(0.1)}),
            {("excessive L1", "sft-l1")},
        ),
        "λ far too large, without a twin": (
            replace(
                well,
                deltas={k: v for k, v in tiny.items() if k != "sft"},
                losses={"sft-l1": STUCK},
                proofs={"sft-l1": proof(0.1)},
                scores={},
            ),
            {("excessive L1", "sft-l1")},
        ),
        "dense SFT, sparse preference": (
            replace(both_dense, deltas={"sft": dense(1), "dpo": sparse(3)}),
            {("dense-sparse mismatch", "sft")},
        ),
        "sparse SFT lost in a dense preference": (replace(well, scores=lost), {("dense-sparse mismatch", "dpo")}),
        "SFT ten times the preference": (
            replace(both_dense, deltas={"sft": 10 * dense(1), "dpo": dense(3)}),
            {("dominance", "sft")},
        ),
        "preference ten times the SFT": (
            replace(both_dense, deltas={"sft": dense(1), "dpo": 10 * dense(3)}),
            {("dominance", "dpo")},
        ),
        "preference that continued the SFT": (
            replace(both_dense, deltas={"sft": dense(1), "dpo": dense(1) + 0.5 * dense(3)}),
            {("continued branch", "dpo")},
        ),
        "preference that moved far on from the SFT": (
            replace(both_dense, deltas={"sft": dense(1), "dpo": dense(1) + 2.5 * dense(3)}),
            {("continued branch", "dpo")},
        ),
        "preference that hardly moved from the SFT, and shrank": (
            replace(both_dense, deltas={"sft": dense(1), "dpo": 0.98 * dense(1) + 0.01 * dense(3)}),
            {("continued branch", "dpo")},
        ),
        "two that learnt the same in part": (
            replace(both_dense, deltas={"sft": dense(1), "dpo": 0.6 * dense(1) + dense(3)}),
            set(),
        ),
        "preference ten times a sparse SFT": (
            replace(well, deltas={**well.deltas, "dpo": 10 * dense(3)}),
            {("dominance", "dpo")},
        ),
    }


def found(diagnosis: Diagnosis) -> set[tuple[str, str | None]]:
    return {(check.signature, check.culprit) for check in diagnosis.findings}


def check_of(diagnosis: Diagnosis, signature: str) -> Check:
    return next(check for check in diagnosis.checks if check.signature == signature)


@pytest.mark.parametrize("name", planted())
def test_each_signature_is_found_where_it_was_planted_and_nowhere_else(name: str, tmp_path: Path) -> None:
    run, expected = planted()[name]
    diagnosis = diagnose(run.write(tmp_path))
    assert found(diagnosis) == expected
    assert diagnosis.healthy == (not expected)
    for check in diagnosis.findings:
        assert any(item.speaks_for for item in check.evidence)
        assert check.remedies
        assert all(remedy.new != remedy.old for remedy in check.remedies)


@pytest.mark.parametrize("factor", [1e-3, 0.3, 7.0])
@pytest.mark.parametrize("name", ["healthy", "SFT ten times the preference", "preference ten times a sparse SFT"])
def test_a_factor_on_both_deltas_changes_nothing_in_dominance(factor: float, name: str, tmp_path: Path) -> None:
    run, _ = planted()[name]
    scaled = replace(run, deltas={key: factor * delta for key, delta in run.deltas.items()})
    before, after = (
        check_of(diagnose(each.write(tmp_path / str(n))), "dominance") for n, each in enumerate((run, scaled))
    )
    assert (before.state, before.culprit, before.confidence) == (after.state, after.culprit, after.confidence)
    # The histogram's bins are a tenth of a decade wide, so that a delta lies in them a little differently.
    for one, other in zip(before.evidence, after.evidence, strict=True):
        assert one.value == pytest.approx(other.value, abs=0.01)


def test_a_healthy_sparse_delta_has_the_norm_of_a_dominated_one(tmp_path: Path) -> None:
    run, _ = planted()["healthy, of a small norm"]
    norms, survival = check_of(diagnose(run.write(tmp_path)), "dominance").evidence[:2]
    assert norms.speaks_for
    assert not survival.speaks_for


def test_swapping_the_deltas_swaps_the_culprit(tmp_path: Path) -> None:
    for n, scale in enumerate((10, 0.1)):
        deltas = {"sft": scale * dense(1), "dpo": dense(3)}
        swapped = {"sft": deltas["dpo"], "dpo": deltas["sft"]}
        one = check_of(diagnose(PlantedRun(deltas).write(tmp_path / f"{n}")), "dominance")
        other = check_of(diagnose(PlantedRun(swapped).write(tmp_path / f"{n} swapped")), "dominance")
        assert {one.culprit, other.culprit} == {"sft", "dpo"}
        assert [item.value for item in one.evidence] == pytest.approx([item.value for item in other.evidence])


def test_the_order_in_which_deltas_were_inspected_does_not_matter(tmp_path: Path) -> None:
    run, _ = planted()["preference ten times a sparse SFT"]
    turned = replace(run, deltas=dict(reversed(run.deltas.items())))
    assert diagnose(run.write(tmp_path / "run")).checks == diagnose(turned.write(tmp_path / "turned")).checks


@pytest.mark.parametrize("name", ["SFT ten times the preference", "preference ten times the SFT"])
def test_the_weight_that_is_advised_mends_dominance(name: str, tmp_path: Path) -> None:
    run, _ = planted()[name]
    check = check_of(diagnose(run.write(tmp_path / "before")), "dominance")
    advice = next(remedy for remedy in check.remedies if remedy.setting.startswith("--weight-"))
    assert check.culprit is not None
    recipe = {branch: {"weight": 1.0} for branch in run.deltas} | {check.culprit: {"weight": float(advice.new)}}
    after = replace(run, recipes={"parallel-ties": recipe}).write(tmp_path / "after")
    assert diagnose(after).healthy


def test_the_advised_strength_is_what_the_twin_gained_over_its_norm(tmp_path: Path) -> None:
    run, _ = planted()["λ far too large"]
    remedies = diagnose(run.write(tmp_path)).findings[0].remedies
    strength = next(remedy for remedy in remedies if remedy.setting == "paft_l1_lambda")
    assert strength.old == "0.1"
    assert float(strength.new) == pytest.approx(0.5 / float(run.deltas["sft"].abs().sum()), rel=0.05)
    assert any(remedy.setting == "paft_target_sparsity" for remedy in remedies)


def test_missing_evidence_is_named_and_lowers_the_confidence(tmp_path: Path) -> None:
    run, _ = planted()["λ far too large"]
    whole = diagnose(run.write(tmp_path / "whole")).findings[0]
    less = replace(run, deltas={k: v for k, v in run.deltas.items() if k != "sft"}, losses={"sft-l1": STUCK})
    part = diagnose(less.write(tmp_path / "less")).findings[0]
    assert (whole.confidence, whole.missing) == ("high", ())
    assert part.confidence == "medium"
    assert "dense twin" in part.missing[0]


def test_without_an_inspection_the_loss_still_tells(tmp_path: Path) -> None:
    folder = planted()["λ far too large"][0].write(tmp_path)
    (folder / "inspection" / "branches" / "inspection.json").unlink()
    diagnosis = diagnose(folder)
    assert found(diagnosis) == {("excessive L1", "sft-l1")}
    assert check_of(diagnosis, "dominance").state == "unknown"
    assert "axolotl paft inspect" in check_of(diagnosis, "dominance").missing[0]


def test_a_twin_that_learns_nothing_is_nothing_to_compare_with(tmp_path: Path) -> None:
    run = healthy()
    check = check_of(
        diagnose(replace(run, losses={"sft": (1.2, 1.195), "sft-l1": (1.2, 1.195)}).write(tmp_path)), "excessive L1"
    )
    assert check.state == "clear"
    assert any("a dense twin that learns" in missing for missing in check.missing)


def test_a_twin_of_another_learning_rate_or_length_is_none(tmp_path: Path) -> None:
    run, _ = planted()["λ far too large"]
    folder = replace(run, deltas=healthy().deltas).write(tmp_path)
    assert found(diagnose(folder)) == {("excessive L1", "sft-l1")}
    history = [{"step": step, "loss": loss, "learning_rate": 1e-3} for step, loss in ((10, 1.2), (100, 0.7))]
    state = folder / "branches" / "sft" / "checkpoint-100" / "trainer_state.json"
    own = folder / "branches" / "sft-l1" / "checkpoint-100" / "trainer_state.json"
    put(own, {"log_history": [{"step": 10, "loss": 1.2, "learning_rate": 1e-4}, {"step": 100, "loss": 1.19}]})
    for entries, said in ((history, "learning rate is 0.001, not 0.0001"), (history[:1], "last step is 10, not 100")):
        put(state, {"log_history": entries})
        check = check_of(diagnose(folder), "excessive L1")
        assert check.state == "clear"
        assert any(said in missing for missing in check.missing)


def test_a_delta_of_zeros_is_no_crash_and_no_guess(tmp_path: Path) -> None:
    run = replace(healthy(), deltas={"sft": dense(1), "dpo": torch.zeros_like(dense(3))}, scores={}, recipes={})
    diagnosis = diagnose(run.write(tmp_path))
    assert {check.state for check in diagnosis.checks if check.signature != "excessive L1"} == {"unknown"}
    json.dumps(diagnosis.as_json(), allow_nan=False)


def test_scores_overrule_what_the_structure_suggests(tmp_path: Path) -> None:
    run, _ = planted()["dense SFT, sparse preference"]
    recipes = {"parallel-ties": {"sft": {}, "dpo": {}}}
    for manners, expected in ((0.9, set()), (0.6, {("dense-sparse mismatch", "sft")})):
        scores = {"sft": SCORES["sft-l1"], "dpo": SCORES["dpo"], "parallel-ties": {"sums": 0.9, "manners": manners}}
        folder = replace(run, recipes=recipes, scores=scores).write(tmp_path / f"{manners}")
        assert found(diagnose(folder)) == expected


def test_each_preference_branch_is_paired_and_judged_by_its_own_arms(tmp_path: Path) -> None:
    run = healthy()
    deltas = {**run.deltas, "orpo": dense(4)}
    recipes = {**RECIPE, "paft-orpo": {"sft-l1": {}, "orpo": {}}}
    scores = {**run.scores, "paft-orpo": {"sums": 0.4, "manners": 0.9}}
    diagnosis = diagnose(replace(run, deltas=deltas, recipes=recipes, scores=scores).write(tmp_path))
    assert found(diagnosis) == {("dense-sparse mismatch", "orpo")}
    assert [check.branches for check in diagnosis.checks if check.signature == "dominance"] == [
        ("sft-l1", "dpo"),
        ("sft-l1", "orpo"),
    ]


@pytest.mark.parametrize("fused", [0.0, 0.9])
@pytest.mark.parametrize("name", planted())
def test_no_confidence_is_high_against_a_score(name: str, fused: float, tmp_path: Path) -> None:
    """Whatever the deltas say: arms that lost everything contradict "not found", arms that lost nothing "found"."""
    run, _ = planted()[name]
    sft = "sft-l1" if "sft-l1" in run.deltas else "sft"
    scores = {"sft": 0.9, "sft-l1": fused if sft == "sft-l1" else 0.9, "dpo": 0.9, "paft-ties": fused}
    run = replace(
        run,
        recipes={"paft-ties": {sft: {}, "dpo": {}}},
        scores={arm: {"sums": value, "manners": value} for arm, value in scores.items()},
    )
    checks = diagnose(run.write(tmp_path)).checks
    twinless = "sft" not in run.deltas or sft == "sft"
    contradicted = "clear" if fused == 0 else "found"
    for check in checks:
        if check.state == contradicted and not (twinless and check.signature == "excessive L1"):
            assert check.confidence != "high", check
            assert any(item.source == "results.json" for item in check.evidence), check


def three_branches() -> PlantedRun:
    """Two skills, each with its twin, and a preference; too much L1 on one, and one that continued the other."""
    math, code = sparse(2), dense(5, 1e-8)
    return PlantedRun(
        deltas={
            "math": dense(1),
            "math-l1": math,
            "code": dense(4),
            "code-l1": code,
            "taste": dense(3),
        },
        losses={"math": (1.2, 0.7), "math-l1": (1.2, 0.8), "code": (1.1, 0.5), "code-l1": (1.1, 1.09)},
        proofs={"math-l1": proof(), "code-l1": proof(0.1)},
        recipes={"paft-ties": {"math-l1": {}, "code-l1": {}, "taste": {}}},
    )


def write_three(run: PlantedRun, folder: Path) -> Path:
    run.write(folder)
    fused = ("math-l1", "code-l1", "taste")
    RunFile(
        base="base",
        arms=(
            *(Arm(name=name, kind="branch", role="sft", branches=(name,)) for name in ("math", "code")),
            *(
                Arm(name=f"{name}-l1", kind="branch", role="sft", penalised=True, branches=(f"{name}-l1",), twin=name)
                for name in ("math", "code")
            ),
            Arm(name="taste", kind="branch", role="preference", branches=("taste",)),
            Arm(name="paft-ties", kind="fused", penalised=True, branches=fused, twin="parallel-ties"),
        ),
    ).write(folder / RUN_FILE)
    return folder


def test_of_three_branches_each_is_held_against_its_twin_and_every_two_against_each_other(tmp_path: Path) -> None:
    diagnosis = diagnose(write_three(three_branches(), tmp_path))
    assert (diagnosis.sft, diagnosis.preferences) == (("math-l1", "code-l1"), ("taste",))
    assert diagnosis.twins == {"math-l1": "math", "code-l1": "code"}
    assert [(check.signature, check.culprit) for check in diagnosis.findings] == [("excessive L1", "code-l1")]
    pairs = [("math-l1", "code-l1"), ("math-l1", "taste"), ("code-l1", "taste")]
    for signature in ("continued branch", "dominance", "dense-sparse mismatch"):
        assert [check.branches for check in diagnosis.checks if check.signature == signature] == pairs


def test_of_three_branches_the_overruled_and_the_continued_one_are_found_with_options_of_their_own(
    tmp_path: Path,
) -> None:
    run = three_branches()
    run.losses["code-l1"] = (1.1, 0.55)
    math = run.deltas["math-l1"]
    for n, (code, taste, expected) in enumerate(
        (
            (math + 0.8 * sparse(8), dense(3), {("continued branch", "code-l1")}),
            (sparse(8), 10 * dense(3), {("dominance", "taste")}),
            (dense(5, 5e-2), dense(3), {("dense-sparse mismatch", "code-l1"), ("dominance", "code-l1")}),
        )
    ):
        deltas = {**run.deltas, "code-l1": code, "taste": taste}
        diagnosis = diagnose(write_three(replace(run, deltas=deltas), tmp_path / str(n)))
        assert found(diagnosis) == expected
        options = [
            remedy.setting for check in diagnosis.findings for remedy in check.remedies if "--" in remedy.setting
        ]
        culprit = next(iter(expected))[1]
        assert set(options) <= {f"--{what} {name}=" for name in (culprit, "math-l1") for what in ("weight", "density")}


def test_without_a_run_the_endings_of_names_tell_twins_and_other_names_are_given(tmp_path: Path) -> None:
    run = three_branches()
    by_name = diagnose(run.write(tmp_path / "endings"))
    assert (set(by_name.sft), by_name.twins) == ({"math-l1", "code-l1"}, {"math-l1": "math", "code-l1": "code"})
    assert found(by_name) == {("excessive L1", "code-l1")}

    def other(named: Mapping[str, Any]) -> dict[str, Any]:
        return {name.replace("-l1", "-sparse"): value for name, value in named.items()}

    named = replace(run, deltas=other(run.deltas), losses=other(run.losses), proofs=other(run.proofs), recipes={})
    folder = named.write(tmp_path / "others")
    with pytest.raises(PaftError, match="--sft"):
        diagnose(folder)
    diagnosis = diagnose(folder, ["math-sparse", "code-sparse"], (), {"": "math", "code-sparse": "code"})
    assert diagnosis.twins == {"math-sparse": "math", "code-sparse": "code"}
    assert diagnosis.preferences == ("taste",)
    assert found(diagnosis) == {("excessive L1", "code-sparse")}


def test_names_that_say_nothing_are_asked_for_and_strange_ones_are_all_refused(tmp_path: Path) -> None:
    folder = PlantedRun({"one": 10 * dense(1), "other": dense(2)}).write(tmp_path)
    with pytest.raises(PaftError, match="--sft"):
        diagnose(folder)
    assert found(diagnose(folder, ["other"])) == {("dominance", "one")}
    with pytest.raises(PaftError) as error:
        diagnose(folder, ["here"], ["there"])
    assert len(error.value.problems) == 2


def test_which_branch_is_which_stands_in_the_run_and_not_in_names(tmp_path: Path) -> None:
    run = PlantedRun(
        deltas={"dense": dense(1), "sparse": sparse(2), "polite": dense(3), "on-top": dense(4)},
        losses={"dense": (1.2, 0.7), "sparse": STUCK},
        proofs={"sparse": proof(0.1)},
    )
    folder = run.write(tmp_path)
    RunFile(
        base="base",
        arms=(
            Arm(name="dense", kind="branch", role="sft", branches=("dense",)),
            Arm(name="sparse", kind="branch", role="sft", penalised=True, branches=("sparse",), twin="dense"),
            Arm(name="polite", kind="branch", role="preference", branches=("polite",)),
            Arm(name="on-top", kind="sequential", branches=("dense",)),
        ),
    ).write(folder / RUN_FILE)
    diagnosis = diagnose(folder)
    assert (diagnosis.sft, diagnosis.twins, diagnosis.preferences) == (("sparse",), {"sparse": "dense"}, ("polite",))
    assert ("excessive L1", "sparse") in found(diagnosis)
    assert diagnose(folder, ["dense"]).twins == {}


def test_a_branch_that_is_meant_to_be_dense_has_learnt_under_no_penalty(tmp_path: Path) -> None:
    """A loss that hardly fell is not the fault of a penalty that there was not."""
    run = PlantedRun({"sft": dense(1, 1e-8), "dpo": dense(3)}, losses={"sft": STUCK, "dpo": (0.69, 0.1)})
    folder = run.write(tmp_path)
    assert found(diagnose(folder)) == {("excessive L1", "sft")}
    arms = [
        Arm(name=name, kind="branch", role=role, branches=(name,))
        for name, role in (("sft", "sft"), ("dpo", "preference"))
    ]
    RunFile(base="base", arms=tuple(arms)).write(folder / RUN_FILE)
    (check,) = (check for check in diagnose(folder).checks if check.signature == "excessive L1")
    assert check.state == "clear"
    assert "without the penalty" in check.message


def test_a_folder_of_an_inspection_alone_will_do(tmp_path: Path) -> None:
    PlantedRun({"sft": 10 * dense(1), "dpo": dense(2)}).write(tmp_path)
    assert found(diagnose(tmp_path / "inspection" / "branches")) == {("dominance", "sft")}


def test_a_signature_that_is_added_as_a_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signatures").mkdir()
    (tmp_path / "signatures" / "added.py").write_text(ADDED)
    folder = healthy().write(tmp_path / "run")
    before = [check.signature for check in diagnose(folder).checks]
    monkeypatch.setattr(signatures, "__path__", [*signatures.__path__, str(tmp_path / "signatures")])
    try:
        checks = diagnose(folder).checks
    finally:
        del BRANCH_CHECKS[1:], sys.modules[f"{signatures.__name__}.added"]
    assert before == ["excessive L1", "continued branch", "dominance", "dense-sparse mismatch"]
    assert [check.signature for check in checks] == ["too few entries", *before]


ADDED = """
from paft_plugin.inspection.diagnosis.verdict import Evidence, judged, of_branch

@of_branch
def too_few(facts, sft, twin):
    entries = Evidence("Entries", facts.measures(sft).entries, facts.inspection_file, 10)
    return judged("too few entries", (sft,), "clear", "There are enough.", evidence=[entries], deciding=[entries])
"""


def test_nothing_to_diagnose_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="nothing to diagnose"):
        diagnose(tmp_path)
    with pytest.raises(PaftError, match="no such folder"):
        diagnose(tmp_path / "nowhere")
    put(tmp_path / "results.json", {"schema": 2, "arms": []})
    with pytest.raises(PaftError, match="nothing to diagnose"):
        diagnose(tmp_path)


def test_controls_and_other_forms_of_a_fused_branch_are_not_diagnosed(tmp_path: Path) -> None:
    run = healthy()
    folder = replace(run, deltas={**run.deltas, "small": dense(5), "sft-long": dense(6)}).write(tmp_path)
    one = Arm(name="sft-l1", kind="branch", role="sft", penalised=True, twin="sft")
    arms = [
        *(one, Arm(name="sft", kind="branch", role="sft"), Arm(name="dpo", kind="branch", role="preference")),
        one.model_copy(update={"name": "small", "control": "rescale_l2", "beside": True, "twin": None}),
        one.model_copy(update={"name": "sft-long", "beside": True, "twin": None}),
        *(Arm(name=f"{name}-ties", kind="fused", branches=(name, "dpo")) for name in ("sft-l1", "small", "sft-long")),
    ]
    RunFile(base="base", arms=tuple(arms)).write(folder / RUN_FILE)
    assert {name for check in diagnose(folder).checks for name in check.branches} <= {"sft-l1", "sft", "dpo"}
