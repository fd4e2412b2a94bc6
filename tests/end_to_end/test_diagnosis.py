"""Diagnoses of branches that `axolotl train` made: what was planted is found, and nothing is found where nothing was planted.

`pytest -m slow -s tests/end_to_end/test_diagnosis.py` prints the table of `paft_plugin/inspection/diagnosis/DIAGNOSIS.md`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from paft_plugin.deltas.delta import open_delta
from paft_plugin.demo.configs import QUICK, QUICK_DEMO
from paft_plugin.demo.run import write_inputs
from paft_plugin.inspection.diagnosis import diagnose
from paft_plugin.inspection.diagnosis.signatures.dominance import survival
from paft_plugin.inspection.diagnosis.verdict import Diagnosis
from paft_plugin.inspection.inspect import inspect_deltas
from paft_plugin.inspection.inspected import read_inspection, write_inspection
from paft_plugin.inspection.training_log import read_curve
from paft_plugin.pipeline.run import prepare
from tests.end_to_end.sweeps import train_all

pytestmark = pytest.mark.slow

MISMATCH, EXCESS, DOMINANCE = "dense-sparse mismatch", "excessive L1", "dominance"
R32 = {"lora_r": 32, "lora_alpha": 64, "seed": 1}
FULL = {"adapter": None, "learning_rate": 2e-4}


class Case(NamedTuple):
    """One run: branch → how it was trained (a key of `trained`), maybe its adapter's alpha multiplied, and what is planted."""

    branches: dict[str, str]
    planted: set[tuple[str, str]]
    alpha: dict[str, int] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


def pair(sft: str, preference: str, twin: str | None = None) -> dict[str, str]:
    """A penalised SFT branch beside its dense twin, or a plain one, and the preference branch."""
    return {"sft": twin, "sft-l1": sft, "dpo": preference} if twin else {"sft": sft, "dpo": preference}


HEALTHY = {
    "the demo": pair("1e-4", "dpo", "0"),
    "λ 3e-5": pair("3e-5", "dpo", "0"),
    "λ 3e-4": pair("3e-4", "dpo", "0"),
    "another seed and rank": pair("1e-4 rank 32", "dpo rank 32", "0 rank 32"),
    "another architecture": pair("1e-4 qwen2", "dpo qwen2", "0 qwen2"),
    "full fine-tuning": pair("1e-4 full", "dpo full", "0 full"),
    "no twin": {"sft-l1": "1e-4", "dpo": "dpo"},
    "both dense": pair("0", "dpo"),
    "both sparse": pair("1e-4", "sparse style", "0"),
}
CASES = {f"healthy: {name}": Case(branches, set()) for name, branches in HEALTHY.items()} | {
    "dense SFT, sparse preference": Case(pair("0", "sparse style"), {(MISMATCH, "sft")}),
    "λ 1e-1": Case(pair("1e-1", "dpo", "0"), {(EXCESS, "sft-l1")}),
    "λ 1e-1, no twin": Case({"sft-l1": "1e-1", "dpo": "dpo"}, {(EXCESS, "sft-l1")}),
    "λ 1e-1, full fine-tuning": Case(pair("1e-1 full", "dpo full", "0 full"), {(EXCESS, "sft-l1")}),
    "SFT at 20 × its learning rate": Case(pair("0 fast", "dpo"), {(DOMINANCE, "sft")}),
    "DPO at 10 × its learning rate": Case(pair("0", "dpo fast"), {(DOMINANCE, "dpo")}),
    "DPO at 10 × its learning rate, sparse SFT": Case(pair("1e-4", "dpo fast", "0"), {(DOMINANCE, "dpo")}),
    "SFT's alpha × 10": Case(pair("0", "dpo"), {(DOMINANCE, "sft")}, {"sft": 10}),
    "DPO's alpha × 10": Case(pair("0", "dpo"), {(DOMINANCE, "dpo")}, {"dpo": 10}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Branch → its folder, all trained by the real tools."""
    run = tmp_path_factory.mktemp("trained")
    write_inputs(QUICK_DEMO, run)
    prepare(run / "paft.yml", ["sft-l1", "dpo"])
    qwen2 = {"base_model": str(as_qwen2(run / "base", run / "qwen2"))}
    sft = {
        "0": {},
        "3e-5": {"paft_l1_lambda": 3e-5},
        "1e-4": {"paft_l1_lambda": 1e-4},
        "3e-4": {"paft_l1_lambda": 3e-4},
        "1e-1": {"paft_l1_lambda": 1e-1},
        "0 rank 32": R32,
        "1e-4 rank 32": {"paft_l1_lambda": 1e-4, **R32},
        "0 qwen2": qwen2,
        "1e-4 qwen2": {"paft_l1_lambda": 1e-4, **qwen2},
        "0 full": FULL,
        "1e-4 full": {"paft_l1_lambda": 1e-4, **FULL},
        "1e-1 full": {"paft_l1_lambda": 1e-1, **FULL},
        "0 fast": {"learning_rate": 1e-2},
        "sparse style": {"paft_l1_lambda": 1e-4, "datasets": chosen_answers(run)},
    }
    dpo = {
        "dpo": {},
        "dpo rank 32": R32,
        "dpo qwen2": qwen2,
        "dpo full": {**FULL, "learning_rate": 1e-4},
        "dpo fast": {"learning_rate": 6e-3},
    }
    folders = train_kind(run, "sft-l1", {name: {"paft_l1_lambda": 0.0, **changes} for name, changes in sft.items()})
    return {**folders, **train_kind(run, "dpo", dpo), "base": run / "base", "qwen2": run / "qwen2"}


@pytest.fixture(scope="module")
def diagnoses(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Diagnosis]]:
    folder = tmp_path_factory.mktemp("cases")
    found = {name: diagnose(lay_out(case, trained, folder / str(n))) for n, (name, case) in enumerate(CASES.items())}
    yield found
    for name, diagnosis in found.items():
        print(f"\n{name}")
        for check in diagnosis.checks:
            values = "; ".join(f"{item.what}: {item.value:.3g}" for item in check.evidence)
            print(f"  {check.state:7} {check.signature} ({check.confidence}): {values}")


@pytest.mark.parametrize("name", CASES)
def test_what_was_planted_is_found_and_nothing_else(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    assert {(check.signature, check.culprit) for check in diagnoses[name].findings} == CASES[name].planted


def test_the_estimate_of_what_survives_agrees_with_a_count(trained: dict[str, Path], tmp_path: Path) -> None:
    for n, (one, other) in enumerate((("0", "dpo"), ("1e-4", "dpo"), ("1e-4", "dpo fast"), ("0", "sparse style"))):
        run = lay_out(Case({"one": one, "other": other}, set()), trained, tmp_path / str(n))
        inspection = read_inspection(run / "inspection" / "branches")
        deltas = [open_delta(trained["base"], trained[name]) for name in (one, other)]
        first, second = (torch.cat([each.double().flatten() for _, each in delta.tensors()]) for delta in deltas)
        survivors = first[torch.sign(first) == torch.sign(first + second)]
        estimate = survival(
            inspection.delta("one").histogram,
            inspection.delta("other").histogram,
            inspection.pairs[0].figures.total.conflict_weight or 0.0,
        )
        assert estimate == pytest.approx(float(survivors.abs().sum() / first.abs().sum()), abs=0.08), (one, other)


def test_the_curve_of_a_checkpoint_is_that_of_the_whole_training(trained: dict[str, Path], tmp_path: Path) -> None:
    run = lay_out(CASES["healthy: the demo"], trained, tmp_path)
    curve = read_curve(run, "sft-l1")
    assert curve is not None
    assert curve.steps[-1] == QUICK.sft_steps
    assert curve.lambda_[-1] == 1e-4
    assert curve.sparsity["1e-05"][-1] > 0.7
    assert curve.start_loss is not None
    assert curve.final_loss is not None
    assert curve.final_loss < 0.75 * curve.start_loss


def train_kind(run: Path, kind: str, runs: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """One sweep over a demo's config; a checkpoint after the last step keeps each run's log."""
    config = run / "configs" / f"all-{kind}" / "config.yml"
    config.parent.mkdir()
    content = yaml.safe_load((run / "configs" / f"{kind}.yml").read_text())
    content |= {"save_steps": content["max_steps"], "tokenizer_config": str(run / "base")}
    content["auto_resume_from_checkpoints"] = False
    config.write_text(yaml.safe_dump(content))
    return train_all(config, runs)


def chosen_answers(run: Path) -> list[dict[str, str]]:
    """SFT on what the preference data prefer: with the penalty, a preference branch that is sparse."""
    rows = [json.loads(line) for line in (run / "data" / "preference.jsonl").read_text().splitlines()]
    file = run / "data" / "chosen.jsonl"
    file.write_text("".join(json.dumps({"messages": row["chosen"]}) + "\n" for row in rows))
    return [{"path": str(file), "ds_type": "json", "split": "train", "type": "chat_template"}]


def as_qwen2(base: Path, folder: Path) -> Path:
    """The demo's Llama as a Qwen2: the same weights, and biases of zero."""
    llama = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    shared = {key: value for key, value in llama.config.to_dict().items() if hasattr(Qwen2Config(), key)}
    for own in ("model_type", "architectures", "layer_types"):
        shared.pop(own, None)
    qwen2 = Qwen2ForCausalLM(Qwen2Config(**shared))
    absent, strange = qwen2.load_state_dict(llama.state_dict(), strict=False)
    assert not strange
    assert all(name.endswith("bias") for name in absent)
    with torch.no_grad():
        for name, parameter in qwen2.named_parameters():
            if name in absent:
                parameter.zero_()
    prompt = torch.arange(3, 15)[None]
    assert torch.allclose(llama(prompt).logits, qwen2(prompt).logits, atol=1e-3)
    qwen2.save_pretrained(folder)
    return folder


def lay_out(case: Case, trained: dict[str, Path], run: Path) -> Path:
    """A run's folder with the case's branches, inspected."""
    for name, how in case.branches.items():
        folder = run / "branches" / name
        shutil.copytree(trained[how], folder)
        if name in case.alpha:
            file = folder / "adapter_config.json"
            content = json.loads(file.read_text())
            file.write_text(json.dumps(content | {"lora_alpha": content["lora_alpha"] * case.alpha[name]}))
    base = trained["qwen2" if any("qwen2" in how for how in case.branches.values()) else "base"]
    branches = {name: run / "branches" / name for name in case.branches}
    write_inspection(inspect_deltas(base, branches), run / "inspection" / "branches")
    return run
