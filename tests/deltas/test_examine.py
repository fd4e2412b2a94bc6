"""One entry point says all about two branches and their base, to recipe, lint and merge alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paft_plugin.deltas.belongs import check_finite, examine
from paft_plugin.deltas.delta import open_delta
from paft_plugin.errors import Findings
from tests.deltas.builders import edit_config, make_adapter, make_base, make_model, make_tokenizer

PROOF = {"schema": 1, "finished": True, "steps_penalised": 200, "lambda": 1e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base")
    make_tokenizer(base)
    make_adapter(base, folder / "sft")
    (folder / "sft" / "paft.json").write_text(json.dumps(PROOF))
    make_model(base, folder / "preference", max_shard_size="20KB")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt, in a folder whose name mergekit would split."""
    here = Path(shutil.copytree(models, tmp_path / "a folder+with @signs"))
    edit_config(here / "sft", base_model_name_or_path=str(here / "base"))
    return here


def examined(here: Path) -> Findings:
    return examine(here / "base", [here / "sft", here / "preference"])


def test_branches_that_belong_together_need_no_word(here: Path) -> None:
    assert examined(here) == Findings()
    assert all(list(open_delta(here / "base", here / branch).tensors()) for branch in ("sft", "preference"))


def test_everything_wrong_is_said_at_once(here: Path) -> None:
    edit_config(here / "sft", use_dora=True)
    first, second, *_ = sorted((here / "preference").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-5])
    second.unlink()
    make_tokenizer(here / "preference", template="{{ other }}")
    findings = examined(here)
    assert len(findings.problems) == 3
    for text, problem in zip(("use_dora", "truncated or corrupt", "missing"), findings.problems, strict=True):
        assert text in problem
    assert any("chat template of its own" in warning for warning in findings.warnings)


def test_a_fault_of_the_base_is_said_once(here: Path) -> None:
    (here / "base" / "model.safetensors").unlink()
    assert len(examined(here).problems) == 1


def test_a_half_written_adapter_is_a_problem(here: Path) -> None:
    file = here / "sft" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert f"{file}: truncated or corrupt" in examined(here).problems[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_entry_that_is_not_finite_is_found_in_either_kind(here: Path, value: float, dtype: torch.dtype) -> None:
    for branch, pattern in (("sft", "adapter_model.safetensors"), ("preference", "model-00002*.safetensors")):
        (file,) = (here / branch).glob(pattern)
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
        name = sorted(tensors)[-1]
        tensors[name].view(-1)[-1] = value
        save_file(tensors, file, metadata={"format": "pt"})
        assert f"NaN or infinity in {name}" in check_finite(here / branch)[0]
    assert sum("NaN or infinity" in problem for problem in examined(here).problems) == 2


def test_one_branch_given_twice_is_a_problem(here: Path) -> None:
    problems = examine(here / "base", [here / "sft", here / "sft"]).problems
    assert problems == [f"{here / 'sft'}: given as two branches. Give only such as were trained apart from each other."]


def test_missing_folders_are_all_named(here: Path) -> None:
    problems = examine(here / "nowhere", [here / "gone", here / "lost"]).problems
    assert len(problems) == 3
    assert all("no such folder" in problem for problem in problems)


def test_broken_tokenizer_files_are_a_problem(here: Path) -> None:
    (here / "base" / "tokenizer.json").write_text("{")
    assert "tokenizer.json: no valid JSON" in examined(here).problems[0]


def test_a_base_of_the_same_shape_and_name_but_other_content_is_refused(here: Path) -> None:
    other = make_base(here / "elsewhere" / "base", seed=9)
    (problem,) = examine(other, [here / "sft", here / "preference"]).problems
    assert f"trained on {here / 'base'}, not on {other}" in problem
    # One bit is enough, and where it lies does not matter.
    file = Path(shutil.copytree(here / "base", here / "copy")) / "model.safetensors"
    assert not examine(here / "copy", [here / "sft", here / "preference"]).problems
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert len(examine(here / "copy", [here / "sft", here / "preference"]).problems) == 1
