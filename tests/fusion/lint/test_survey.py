"""The survey of large tensors is a sample, and the same one every time."""

from __future__ import annotations

import pytest
import torch
from mergekit.sparsify import magnitude
from safetensors.torch import load_file

from paft_plugin.fusion.lint import survey as module
from paft_plugin.fusion.lint.document import Document, read
from paft_plugin.fusion.lint.linter import as_recipe
from paft_plugin.fusion.lint.recipe import SoundRecipe
from tests.fusion.lint.bench import Bench, Recipe


def sound(bench: Bench, content: Recipe | None = None) -> SoundRecipe:
    document = read(bench.write(bench.recipe("ties") if content is None else content))
    assert isinstance(document, Document)
    recipe, _ = as_recipe(document, explained=False)
    assert recipe is not None
    return recipe


def test_small_tensors_are_counted_in_full(bench: Bench) -> None:
    base, sft, preference = (
        load_file(bench.sparse / name / "model.safetensors") for name in ("base", "sft", "preference")
    )
    for fact in module.survey(sound(bench)):
        deltas = [branch[fact.name] - base[fact.name] for branch in (sft, preference)]
        for index, delta in enumerate(deltas):
            look = fact.looks[index]
            assert look.nonzero == pytest.approx(float((delta != 0).float().mean()), abs=1e-6)
            assert look.square == pytest.approx(float(delta.double().square().sum()), rel=1e-5)
            assert look.absolute == pytest.approx(float(delta.double().abs().sum()), rel=1e-5)
        assert fact.dots[0, 1] == pytest.approx(float((deltas[0].double() * deltas[1].double()).sum()), abs=1e-9)
        changed = torch.stack([delta != 0 for delta in deltas]).sum(dim=0)
        assert fact.changed == int((changed > 0).sum())
        if fact.changed:
            assert fact.alone == int((changed == 1).sum()) / fact.changed


def test_what_a_trim_leaves_is_what_mergekit_leaves(bench: Bench) -> None:
    recipe = bench.recipe("ties", "dense", density=0.2)
    base, sft, preference = (
        load_file(bench.dense / name / "model.safetensors") for name in ("base", "sft", "preference")
    )
    for fact in module.survey(sound(bench, recipe)):
        kept = [magnitude(branch[fact.name] - base[fact.name], 0.2) != 0 for branch in (sft, preference)]
        counts = torch.stack(kept).sum(dim=0)
        assert fact.changed == int((counts > 0).sum())
        assert fact.alone == int((counts == 1).sum()) / fact.changed


def test_a_sample_comes_close_and_repeats(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def shares() -> list[float]:
        return [fact.looks[0].nonzero for fact in module.survey(sound(bench)) if fact.entries > 1000]

    whole = shares()
    monkeypatch.setattr(module, "SAMPLE", 1000)
    sampled = shares()
    assert sampled != whole
    assert sampled == shares()
    assert sampled == pytest.approx(whole, abs=0.04)


def test_each_tensor_gets_the_parameters_that_mergekit_would_give_it(bench: Bench) -> None:
    density = [{"filter": "mlp", "value": [0.1, 0.5]}, {"value": 0.9}]
    recipe = bench.recipe("ties", "dense")
    recipe["models"][0]["parameters"]["density"] = density
    found = {fact.name: fact.looks[0].parameters["density"] for fact in module.survey(sound(bench, recipe))}
    assert found["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.1)
    assert found["model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.5)
    assert found["model.layers.1.self_attn.q_proj.weight"] == pytest.approx(0.9)
