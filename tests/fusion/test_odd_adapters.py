"""Adapters under odd names are merged to the very bits of the same adapters as PEFT names them, whole and as an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paft_plugin.cli import paft
from tests.deltas.builders import make_adapter, make_base, make_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_base(folder / "base", dtype=torch.bfloat16)
    for name, seed in (("sft", 1), ("preference", 2)):
        make_adapter(folder / "base", folder / name, seed, modules_to_save=["lm_head"])
        odd = Path(shutil.copytree(folder / name, folder / f"{name} odd"))
        file = odd / "adapter_model.safetensors"
        renamed = {
            f"base_model.model.{key}".replace("model.layers", "model.language_model.layers"): tensor
            for key, tensor in load_file(file).items()
        }
        save_file(renamed, file)
    for branch in folder.iterdir():
        make_tokenizer(branch)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(paft, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("how", [[], ["--adapter"]], ids=["whole", "adapter"])
def test_the_same_bits_as_with_the_usual_names(models: Path, tmp_path: Path, how: list[str]) -> None:
    merged = []
    for kind in ("", " odd"):
        recipe, out = tmp_path / f"recipe{kind}.yml", tmp_path / f"out{kind}"
        branches = "--sft", models / f"sft{kind}", "--preference", models / f"preference{kind}"
        said = run("recipe", "--base", models / "base", *branches, "--method", "task_arithmetic", "--output", recipe)
        assert said.count("model.language_model.layers… is taken for model.layers…") == (2 if kind else 0)
        run("merge", recipe, out, "--quiet", *how)
        (file,) = out.glob("*.safetensors")
        merged.append(load_file(file))
    plain, odd = merged
    assert plain.keys() == odd.keys()
    assert all(torch.equal(plain[name], odd[name]) for name in plain)
