"""Every code has a planted recipe that triggers it, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paft_plugin.errors import PaftError
from paft_plugin.fusion.lint import errors
from paft_plugin.fusion.lint.codes import CODES, explain
from paft_plugin.fusion.recipe import merge_command, write_recipe
from paft_plugin.fusion.request import RecipeRequest
from tests.deltas.builders import make_adapter, make_base, make_model, make_tokenizer
from tests.fusion.deltas import make_branch
from tests.fusion.lint.conftest import Bench, Recipe
from tests.fusion.test_merge import run_mergekit

Planted = Recipe | str | tuple[Recipe, str]
CASES: dict[str, list[Callable[[Bench], Planted]]] = {}


def plant(name: str) -> Callable[[Callable[[Bench], Planted]], Callable[[Bench], Planted]]:
    """Enter a function that plants a recipe with one fault under the fault's name."""

    def enter(function: Callable[[Bench], Planted]) -> Callable[[Bench], Planted]:
        CASES.setdefault(name, []).append(function)
        return function

    return enter


def spoilt(path: str, value: Any, method: str = "ties", **parameters: Any) -> Callable[[Bench], Recipe]:
    """A healthy recipe with one value set, such as `models.0.parameters.weight`; a value of None deletes it."""

    def make(bench: Bench) -> Recipe:
        recipe = bench.recipe(method, **parameters)
        inside: Any = recipe
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            inside = inside[part]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
        return recipe

    return make


for name, case in [
    ("not-yaml", lambda _: "merge_method: [ties"),
    ("not-yaml", lambda _: "- ties"),
    ("not-yaml", lambda _: ""),
    ("unknown-key", spoilt("modles", [])),
    ("unknown-key", spoilt("models.0.paramters", {})),
    ("unknown-key", spoilt("models.0.weight", 1.0)),
    ("unknown-key", spoilt("base_model.model.pth", "x")),
    ("unknown-key", spoilt("models.0.parameters.weight", [{"filtre": "mlp", "value": 1}, {"value": 1}])),
    ("duplicate-key", lambda bench: json.dumps(bench.recipe())[:-1] + ', "dtype": "float32"}'),
    ("wrong-kind", spoilt("models.0.model", 3)),
    ("wrong-kind", spoilt("models.0.parameters", [1])),
    ("wrong-kind", spoilt("merge_method", None)),
    ("unknown-method", spoilt("merge_method", "tise")),
    ("one-of-three", spoilt("models", None)),
    ("two-tokenizers", lambda bench: bench.recipe() | {"tokenizer_source": "base", "tokenizer": {"source": "base"}}),
    ("without-effect", spoilt("models.0.parameters.density", 0.5, method="task_arithmetic")),
    ("without-effect", spoilt("parameters.nuslerp_row_wise", True, method="nuslerp")),
    ("without-effect", spoilt("parameters.int8_mask", True, method="dare_linear", density=0.5)),
    ("wrong-models", spoilt("base_model", None)),
    ("wrong-models", lambda bench: _bare(bench.recipe("slerp", shared_t=0.5))),
    ("unknown-chat-template", spoilt("chat_template", "chatlm", method="task_arithmetic")),
    ("unknown-dtype", spoilt("dtype", "fp32", method="task_arithmetic")),
    ("unknown-parameter", spoilt("models.1.parameters.desnity", 0.5, method="task_arithmetic")),
    ("unknown-parameter", spoilt("models.1.parameters.gamma", 0.5, method="task_arithmetic")),
    ("wrong-scope", spoilt("models.0.parameters.normalize", False, method="task_arithmetic")),
    ("missing-parameter", spoilt("models.0.parameters.weight", None, method="task_arithmetic")),
    ("missing-parameter", spoilt("models.0.parameters.weight", [{"filter": "mlp", "value": 1}], method="task_arithmetic")),
    ("missing-parameter", lambda bench: _bare(bench.recipe("slerp") | {"base_model": str(bench.sparse / "sft")})),
    ("wrong-value", spoilt("models.0.parameters.weight", "much", method="task_arithmetic")),
    ("wrong-value", spoilt("models.0.parameters.weight", True, method="task_arithmetic")),
    ("wrong-value", spoilt("parameters.normalize", "perhaps", method="task_arithmetic")),
    ("out-of-range", spoilt("models.0.parameters.density", 1.5)),
    ("out-of-range", spoilt("models.0.parameters.density", [0.0, 0.5])),
    ("out-of-range", spoilt("models.0.parameters.weight", float("nan"), method="task_arithmetic")),
    ("weights-cancel", spoilt("models.0.parameters.weight", -1, method="task_arithmetic", shared_normalize=True)),
    ("nothing-merged", spoilt("parameters.lambda", 0, method="task_arithmetic")),
    ("nothing-merged", lambda bench: bench.recipe(weight=0.0)),
    ("gradient", spoilt("parameters.density", [0.3, 0.6], pair="dense")),
    ("no-default", spoilt("models.0.parameters.density", [{"filter": "mlp", "value": 0.3}], pair="dense")),
    ("filter-without-tensors", spoilt("models.0.parameters.weight", [{"filter": "mpl", "value": 1}, {"value": 1}])),
    ("nothing-dropped", lambda bench: bench.recipe("dare_ties")),
    ("nothing-dropped", lambda bench: bench.recipe("breadcrumbs", density=1.0, gamma=0.01)),
    ("della-window", lambda bench: bench.recipe("della", "dense", density=0.9, epsilon=0.15)),
    ("folder-missing", spoilt("models.0.model", "/no/such/folder", method="task_arithmetic")),
    ("not-checked", spoilt("models.0.model", "some/model", method="task_arithmetic")),
    ("home-in-path", spoilt("models.0.model", "~/sft", method="task_arithmetic")),
    ("tokenizer-union", lambda bench: bench.recipe() | {"tokenizer_source": "union"}),
    ("tokenizer-union", lambda bench: bench.recipe() | {"tokenizer": {"pad_to_multiple_of": 64}}),
    ("sce-uniform", lambda bench: _bare(bench.recipe("sce"))),
    ("stock-returns-base", lambda bench: _bare(bench.recipe("model_stock"))),
    ("ram-drops", lambda bench: _bare(bench.recipe("ram", shared_epsilon=1e-3))),
    ("breadcrumbs-zeroes", lambda bench: bench.recipe("breadcrumbs", density=0.2, gamma=0.15)),
    ("breadcrumbs-guts", lambda bench: bench.recipe("breadcrumbs", density=0.2, gamma=0.035)),
    ("della-ranks-zeros", lambda bench: bench.recipe("della", density=0.5, epsilon=0.1)),
    ("trims-nothing", lambda bench: bench.recipe("ties", density=0.3)),
    ("weights-idle", lambda bench: bench.recipe("ties", "dense", density=0.9, weight=0.5)),
    ("weights-idle", spoilt("models.0.parameters.weight", 0.1, weight=0.9)),
    ("weights-idle", spoilt("models.0.parameters.weight", 0.1, method="della", pair="dense", density=0.2, epsilon=0.1)),
    ("dtype-rounds", lambda bench: _without(bench.recipe(pair="adapters") | {"dtype": "bfloat16"}, "out_dtype")),
    ("adapter-flags", lambda bench: bench.recipe(pair="adapters")),
]:  # fmt: skip
    plant(name)(case)


def _bare(recipe: Recipe) -> Recipe:
    """Without what stands under the models, for methods that take nothing there."""
    return recipe | {"models": [{"model": model["model"]} for model in recipe["models"]]}


def _without(recipe: Recipe, *keys: str) -> Recipe:
    return {key: value for key, value in recipe.items() if key not in keys}


def _flags(bench: Bench, *more: str) -> str:
    return " ".join(["mergekit-yaml", str(bench.own / "recipe.yml"), str(bench.own / "out"), *more])


@plant("without-effect")
def _residual_weight(bench: Bench) -> Recipe:
    healthy = bench.recipe()
    sources = [model | {"layer_range": [0, 2]} for model in [*healthy["models"], {"model": healthy["base_model"]}]]
    slices = [{"sources": sources, "residual_weight": 0.5}]
    return _without(healthy, "models") | {"slices": slices}


@plant("wrong-models")
def _twice(bench: Bench) -> Recipe:
    recipe = bench.recipe()
    return recipe | {"models": [recipe["models"][0]] * 2}


@plant("base-averaged")
def _linear_with_base(bench: Bench) -> Recipe:
    return bench.recipe("linear")


@plant("base-averaged")
def _karcher_with_base(bench: Bench) -> Recipe:
    return _bare(bench.recipe("karcher"))


@plant("parameter-on-base")
def _weight_of_the_base(bench: Bench) -> Recipe:
    recipe = bench.recipe()
    base = {"model": recipe["base_model"], "parameters": {"weight": 0.5}}
    return recipe | {"models": [base, *recipe["models"]]}


@plant("unreachable")
def _general_before_special(bench: Bench) -> Recipe:
    weight = [{"filter": "mlp", "value": 0.5}, {"filter": "mlp.up_proj", "value": 0.7}, {"value": 1.0}]
    return spoilt("models.0.parameters.weight", weight, method="task_arithmetic")(bench)


@plant("relative-path")
def _relative_output(bench: Bench) -> tuple[Recipe, str]:
    return bench.recipe(), f"mergekit-yaml {bench.own}/recipe.yml out"


@plant("relative-path")
def _beside_the_recipe(bench: Bench) -> Recipe:
    shutil.copytree(bench.sparse / "sft", bench.own / "sft")
    return spoilt("models.0.model", "sft", method="task_arithmetic")(bench)


@plant("separator-in-path")
def _plus(bench: Bench) -> Recipe:
    shutil.copytree(bench.sparse / "sft", bench.own / "lr+1")
    return spoilt("models.0.model", str(bench.own / "lr+1"))(bench)


@plant("separator-in-path")
def _two_at(bench: Bench) -> Recipe:
    return spoilt("models.0.model", "/a@b@c")(bench)


@plant("wrong-folder")
def _adapter_as_model(bench: Bench) -> Recipe:
    return spoilt("models.0.model", str(bench.adapters / "sft"), method="task_arithmetic", pair="adapters")(bench)


@plant("unreadable")
def _truncated(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "preference", bench.own / "cut"))
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    return spoilt("models.1.model", str(copy), method="task_arithmetic")(bench)


@plant("unreadable")
def _pickled(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "preference", bench.own / "pickled"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    recipe = spoilt("models.1.model", str(copy), method="linear")(bench)
    return _without(recipe, "base_model")


def _with_adapter(bench: Bench, adapter: Path) -> tuple[Recipe, str]:
    recipe = bench.recipe(pair="adapters")
    recipe["models"][1]["model"] = recipe["base_model"] | {"lora": {"path": str(adapter)}}
    return recipe, _flags(bench, "--lora-merge-cache", str(bench.own / "cache"), "--lora-merge-dtype", "float32")


@plant("other-base")
def _trained_elsewhere(bench: Bench) -> tuple[Recipe, str]:
    other = make_base(bench.own / "elsewhere", seed=9)
    return _with_adapter(bench, make_adapter(other, bench.own / "adapter", size=2e-4))


@plant("vocabulary-grew")
def _grown(bench: Bench) -> tuple[Recipe, str]:
    adapter = make_adapter(bench.adapters / "base", bench.own / "adapter", size=2e-4, modules_to_save=["embed_tokens"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    (key,) = [key for key in tensors if "embed_tokens" in key]
    save_file(tensors | {key: torch.cat([tensors[key], tensors[key][:3]])}, file)
    return _with_adapter(bench, adapter)


@plant("does-not-fit")
def _another_shape(bench: Bench) -> Recipe:
    other = make_base(bench.own / "larger", hidden_size=64)
    make_tokenizer(other)
    return spoilt("models.1.model", str(other), method="task_arithmetic")(bench)


@plant("two-bases")
def _adapter_on_another(bench: Bench) -> tuple[Recipe, str]:
    other = make_model(bench.adapters / "base", bench.own / "other")
    make_tokenizer(other)
    recipe, command = _with_adapter(bench, make_adapter(other, bench.own / "adapter", size=2e-4))
    recipe["models"][1]["model"]["model"] = {"path": str(other)}
    return recipe, command


@plant("unproven")
def _no_proof(bench: Bench) -> Recipe:
    copy = shutil.copytree(bench.sparse / "sft", bench.own / "sft", ignore=shutil.ignore_patterns("paft.json"))
    return spoilt("models.0.model", str(copy), method="task_arithmetic")(bench)


@plant("unproven")
def _unfinished(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "sft", bench.own / "sft"))
    (copy / "paft.json").write_text('{"finished": false, "steps_penalised": 3}')
    return spoilt("models.0.model", str(copy), method="task_arithmetic")(bench)


@plant("tokenizer-open")
def _two_tokenizers(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "preference", bench.own / "other"))
    make_tokenizer(copy, template="{{ messages[0]['content'] }} other")
    return _without(spoilt("models.1.model", str(copy), method="linear")(bench), "base_model")


@plant("out-dtype-missing")
def _written_in_float32(bench: Bench) -> tuple[Recipe, str]:
    recipe, command = _with_adapter(bench, bench.adapters / "preference")
    return _without(recipe, "out_dtype"), command


@plant("not-finite")
def _diverged_model(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "preference", bench.own / "diverged"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return spoilt("models.1.model", str(copy), method="task_arithmetic")(bench)


@plant("not-finite")
def _diverged_model_without_a_base(bench: Bench) -> Recipe:
    recipe = _diverged_model(bench)
    return _without(recipe, "base_model", "parameters") | {"merge_method": "linear"}


@plant("not-finite")
def _diverged_adapter(bench: Bench) -> tuple[Recipe, str]:
    copy = Path(shutil.copytree(bench.adapters / "preference", bench.own / "diverged"))
    tensors = load_file(copy / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, copy / "adapter_model.safetensors")
    return _with_adapter(bench, copy)


@plant("zero-delta")
def _untrained(bench: Bench) -> Recipe:
    copy = make_branch(bench.sparse / "base", bench.own / "untrained", share=0.0, seed=1)
    return spoilt("models.1.model", str(copy), method="task_arithmetic")(bench)


@plant("adapter-rounded")
def _no_dtype_flag(bench: Bench) -> tuple[Recipe, str]:
    return bench.recipe(pair="adapters"), _flags(bench, "--lora-merge-cache", str(bench.own / "cache"))


def _merged(bench: Bench, dtype: str = "float32") -> tuple[Path, Path]:
    """A recipe with a cache that a merge by mergekit itself has filled, and the adapter that may change now."""
    adapter = Path(shutil.copytree(bench.adapters / "preference", bench.own / "adapter"))
    base = bench.adapters / "base"
    request = RecipeRequest(base, bench.adapters / "sft", adapter, "task_arithmetic", bench.own / "recipe.yml")
    recipe = write_recipe(request)
    command = merge_command(recipe)
    command[command.index("float32")] = dtype
    run_mergekit(command)
    assert recipe.lora_cache is not None
    return recipe.file, recipe.lora_cache


@plant("cache-stale")
def _retrained(bench: Bench) -> str:
    file, _ = _merged(bench)
    make_adapter(bench.adapters / "base", bench.own / "adapter", seed=11, size=2e-4)
    return file.read_text()


@plant("cache-broken")
def _cut_off(bench: Bench) -> str:
    file, cache = _merged(bench)
    weights = next(path for path in cache.iterdir() if "adapter" in path.name) / "model.safetensors"
    weights.unlink()
    return file.read_text()


@plant("cache-rounded")
def _written_narrow(bench: Bench) -> str:
    file, _ = _merged(bench, dtype="bfloat16")
    return file.read_text()


ALSO = {
    # These recipes name no command for their adapters.
    "dtype-rounds": {"adapter-flags"},
    "wrong-folder": {"adapter-flags"},
    # Without its filter the first condition takes every tensor.
    "unknown-key": {"unreachable"},
    # Weights are looked at for `models:` alone, and this is about `slices:`.
    "without-effect": {"not-checked"},
}
"""What a planted fault cannot but bring along."""


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in CASES for number in range(len(CASES[name]))])
def test_a_planted_fault_is_found_and_nothing_else(
    bench: Bench, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    planted = CASES[name][number](bench)
    findings = bench.lint(*planted) if isinstance(planted, tuple) else bench.lint(planted)
    names = {finding.name for finding in findings}
    assert name in names, findings
    assert names <= {name} | ALSO.get(name, set()), findings
    for finding in findings:
        assert finding.message.endswith((".", "?", ")")), finding
        assert finding.fix
        assert finding.severity == CODES[finding.name].severity


def test_every_code_has_a_planted_recipe() -> None:
    assert set(CASES) == set(CODES)


def test_codes_are_unique_and_explained_by_number_or_name() -> None:
    codes = [code.code for code in CODES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"PAFT[1-5]\d\d", code) for code in codes)
    assert explain("paft102") == explain("unknown-key") == [CODES["unknown-key"]]
    assert len(explain("all")) == len(CODES)
    with pytest.raises(PaftError, match="Did you mean unknown-key"):
        explain("unknown-keys")


def test_a_finding_names_line_place_and_the_likeliest_word(bench: Bench) -> None:
    text = "merge_method: ties\nbase_model: /b\nmodels:\n  - model: /c\n    parameters:\n      desnity: 0.5\n      weight: 1\n"
    (finding,) = [finding for finding in errors(bench.lint(text)) if finding.name == "unknown-parameter"]
    assert (finding.line, finding.where) == (6, "models[0].parameters.desnity")
    assert finding.fix == "Did you mean `density`?"
