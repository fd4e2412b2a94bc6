"""Scoring: the same every time, adapters as well as models, no finished arm lost, and one clear line for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paft_plugin.errors import PaftError
from paft_plugin.evaluation import score as scoring
from paft_plugin.evaluation.arms import MEASURES, ArmResult, alignment_tax
from paft_plugin.evaluation.candidates import Candidate, parse_all
from paft_plugin.evaluation.score import load, main, score

from .conftest import build_model

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def build_adapter(base: Path, directory: Path, *, spread: float) -> Path:
    """Save a LoRA on `base` with B normal of standard deviation `spread`."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj", "o_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=spread)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(base, tmp_path_factory.mktemp("adapters") / "loud", spread=3.0)


def likelihoods(candidate: Candidate) -> list[float]:
    from lm_eval.api.instance import Instance

    texts = [("<s><|user|>copy ab<|assistant|>", "ab.</s>"), ("<s><|user|>add 1+2<|assistant|>", "sure: 3!</s>")]
    requests = [Instance("loglikelihood", {}, text, index) for index, text in enumerate(texts)]
    return [value for value, _ in load(candidate).loglikelihood(requests)]


def test_the_same_bytes_every_time_and_what_is_in_them(base: Path, adapter: Path, tasks: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    arms = parse_all([f"base={base}", f"sft={adapter}"])
    score(arms, tasks, first)
    score(arms, tasks, second)
    assert first.read_bytes() == second.read_bytes()

    content = json.loads(first.read_text())
    assert content["schema"] == 1
    assert list(content["scores"]) == ["base", "sft"]
    for scores in content["scores"].values():
        assert set(scores) == {"n", "abilities"} | {m.name + end for m in MEASURES for end in ("", "_stderr")}
        assert all(0 <= scores[measure.name] <= 1 for measure in MEASURES)


def test_an_adapter_is_scored_on_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain = likelihoods(Candidate("base", base))
    assert parse_all([f"sft={adapter}"]) == [Candidate("sft", base, adapter)]
    assert likelihoods(Candidate("sft", base, adapter)) != pytest.approx(plain, abs=0.1)
    silent = build_adapter(base, tmp_path / "silent", spread=0.0)
    assert likelihoods(Candidate("silent", base, silent)) == plain


def test_a_half_precision_model_is_scored_in_float32(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    assert load(Candidate("half", half)).model.dtype == torch.float32


def test_a_later_failure_costs_no_finished_arm(base: Path, adapter: Path, tasks: Path, tmp_path: Path) -> None:
    wider, output = build_model(tmp_path / "wider", hidden=48), tmp_path / "scores.json"
    with pytest.raises(PaftError, match=r"^arm other: .*can't be loaded: .*size mismatch"):
        score([Candidate("base", base), Candidate("other", wider, adapter)], tasks, output)
    assert list(json.loads(output.read_text())["scores"]) == ["base"]


def drop_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith("q_proj.weight"))]
    save_file(tensors, file, {"format": "pt"})


def rename_tensors(file: Path) -> None:
    save_file({name.replace("q_proj", "query"): tensor for name, tensor in load_file(file).items()}, file)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: cut_short(folder / "model.safetensors"), "model.safetensors is corrupt"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in"),
        (lambda folder: (folder / "config.json").unlink(), "no model in"),
        (lambda folder: (folder / "config.json").write_text("{"), "can't be loaded"),
        (lambda folder: drop_tensor(folder / "model.safetensors"), "lacks 1 tensors .*q_proj"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "can't be loaded"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
    ],
)
def test_a_spoilt_model_is_one_line_that_names_the_arm(
    spoil: Any, message: str, base: Path, tasks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    spoil(folder)
    with pytest.raises(PaftError, match=f"^arm sft: .*{message}") as caught:
        score([Candidate("sft", folder)], tasks, tmp_path / "scores.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: cut_short(folder / ADAPTER_WEIGHTS), "adapter_model.safetensors is corrupt"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "no weights in"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter in"),
        (lambda folder: rename_tensors(folder / ADAPTER_WEIGHTS), "missing adapter keys"),
        (lambda folder: edit_json(folder / "adapter_config.json", r=4), "size mismatch"),
    ],
)
def test_a_spoilt_adapter_is_one_line_that_names_the_arm(
    spoil: Any, message: str, base: Path, adapter: Path, tasks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    spoil(folder)
    with pytest.raises(PaftError, match=f"^arm sft: .*{message}") as caught:
        score([Candidate("sft", base, folder)], tasks, tmp_path / "scores.json")
    assert "\n" not in str(caught.value)


def test_all_mistakes_at_once_before_anything_is_scored(
    base: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "score_model", lambda *_: pytest.fail("scored although another arm is wrong"))
    candidates = [Candidate("base", base), Candidate("dpo", tmp_path / "a"), Candidate("dpo", base, tmp_path / "b")]
    with pytest.raises(PaftError) as caught:
        score(candidates, tasks, tmp_path / "scores.json")
    assert [problem.split(" (")[0] for problem in caught.value.problems] == [
        "arm dpo: named 2 times",
        f"arm dpo: no model in {tmp_path / 'a'}",
        f"arm dpo: no adapter in {tmp_path / 'b'}",
    ]


def test_the_command_line_explains_and_returns_2(
    base: Path, adapter: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--tasks", str(tasks), "--output", str(tmp_path / "scores.json")]
    homeless = tmp_path / "homeless"
    shutil.copytree(adapter, homeless)
    edit_json(homeless / "adapter_config.json", base_model_name_or_path="some/hub-model")

    assert main([*there, "sft", "=x", f"dpo={homeless}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("Error: ") for line in lines)
    assert f"--adapter dpo BASE {homeless}" in lines[2]

    assert main(there) == 2
    assert "name at least one" in capsys.readouterr().err
    assert main(["--tasks", str(tmp_path), "--output", "x.json", f"base={base}"]) == 2
    assert capsys.readouterr().err.count("no lm-eval task") == len(MEASURES)
    assert main([*there, "--adapter", "dpo", str(base)]) == 2


def test_the_command_line_scores(
    base: Path, adapter: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "scores.json"
    options = ["--tasks", str(tasks), "--output", str(output), "--adapter", "dpo", str(base), str(adapter)]
    assert main([*options, f"base={base}"]) == 0
    scores = json.loads(output.read_text())["scores"]
    assert list(scores) == ["base", "dpo"]
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("base: ", "dpo: "))]
    assert len(shown) == 2
    assert f"preference {scores['base']['preference']:.3f}" in shown[0]


def test_the_alignment_tax_is_what_an_aligned_arm_loses_of_the_skill() -> None:
    skills = {
        "base": 0.0,
        "sft": 0.9,
        "sft-l1": 0.8,
        "dpo": 0.1,
        "sequential": 0.7,
        "paft-ties": 1.0,
        "paft-linear": None,
    }
    results = [ArmResult(arm, skill=skill) for arm, skill in skills.items()]
    assert alignment_tax(results) == pytest.approx({"sequential": 0.2, "paft-ties": -0.1})
    assert alignment_tax([result for result in results if result.arm != "sft"]) == {}


@pytest.mark.slow
def test_lm_eval_by_hand_agrees(base: Path, adapter: Path, tasks: Path, tmp_path: Path) -> None:
    score([Candidate("sft", base, adapter)], tasks, tmp_path / "scores.json")
    ours = json.loads((tmp_path / "scores.json").read_text())["scores"]["sft"]
    names = ",".join(measure.task for measure in MEASURES)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", names, "--include_path", str(tasks)]
    command += ["--model_args", f"pretrained={base},peft={adapter},dtype=float32", "--apply_chat_template"]
    command += ["--batch_size", "64", "--device", "cpu", "--output_path", str(tmp_path / "by_hand.json")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    (written,) = tmp_path.rglob("by_hand*.json")
    theirs = json.loads(written.read_text())["results"]
    for measure in MEASURES:
        assert theirs[measure.task][f"{measure.metric},{measure.filter}"] == ours[measure.name]
