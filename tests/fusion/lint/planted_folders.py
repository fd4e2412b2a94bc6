"""Recipes with one fault each, of the kind that needs something on disk: folders, adapters, caches."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from paft_plugin.fusion.recipe.render import merge_command, two_branches
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from tests.deltas.builders import make_adapter, make_base, make_model, make_tokenizer
from tests.fusion.deltas import make_branch
from tests.fusion.lint.bench import Bench, Recipe
from tests.fusion.lint.planted import bare, plant, spoilt, without
from tests.fusion.mergekit_runs import run_mergekit


def _flags(bench: Bench, *more: str) -> str:
    return " ".join(["mergekit-yaml", str(bench.own / "recipe.yml"), str(bench.own / "out"), *more])


@plant("without-effect")
def _residual_weight(bench: Bench) -> Recipe:
    healthy = bench.recipe()
    sources = [model | {"layer_range": [0, 2]} for model in [*healthy["models"], {"model": healthy["base_model"]}]]
    slices = [{"sources": sources, "residual_weight": 0.5}]
    return without(healthy, "models") | {"slices": slices}


@plant("wrong-models")
def _twice(bench: Bench) -> Recipe:
    recipe = bench.recipe()
    return recipe | {"models": [recipe["models"][0]] * 2}


@plant("base-averaged")
def _linear_with_base(bench: Bench) -> Recipe:
    return bench.recipe("linear")


@plant("base-averaged")
def _karcher_with_base(bench: Bench) -> Recipe:
    return bare(bench.recipe("karcher"))


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
    return without(recipe, "base_model")


@plant("unreadable")
def _quantised_base(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "base", bench.own / "quantised"))
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor.to(torch.uint8) for name, tensor in tensors.items()}, copy / "model.safetensors")
    return bench.recipe() | {"base_model": str(copy)}


@plant("unreadable")
def _no_json(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "base", bench.own / "broken"))
    (copy / "config.json").write_text("{")
    return bench.recipe() | {"base_model": str(copy)}


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
    (copy / "paft.json").write_text('{"schema": 1, "finished": false, "steps_penalised": 3}')
    return spoilt("models.0.model", str(copy), method="task_arithmetic")(bench)


@plant("tokenizer-open")
def _two_tokenizers(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "preference", bench.own / "other"))
    make_tokenizer(copy, template="{{ messages[0]['content'] }} other")
    return without(spoilt("models.1.model", str(copy), method="linear")(bench), "base_model")


@plant("out-dtype-missing")
def _written_in_float32(bench: Bench) -> tuple[Recipe, str]:
    recipe, command = _with_adapter(bench, bench.adapters / "preference")
    return without(recipe, "out_dtype"), command


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
    return without(recipe, "base_model", "parameters") | {"merge_method": "linear"}


@plant("not-finite")
def _diverged_adapter(bench: Bench) -> tuple[Recipe, str]:
    copy = Path(shutil.copytree(bench.adapters / "preference", bench.own / "diverged"))
    tensors = load_file(copy / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, copy / "adapter_model.safetensors")
    return _with_adapter(bench, copy)


@plant("not-finite")
def _overflowing_adapter(bench: Bench) -> tuple[Recipe, str]:
    """Each factor is finite, their product is not."""
    copy = Path(shutil.copytree(bench.adapters / "preference", bench.own / "overflowing"))
    tensors = {
        name: torch.full_like(tensor, 1e30) for name, tensor in load_file(copy / "adapter_model.safetensors").items()
    }
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
    branches = two_branches(bench.adapters / "sft", adapter)
    request = RecipeRequest(base, branches, "task_arithmetic", bench.own / "recipe.yml")
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


@plant("read-as")
def _compiled(bench: Bench) -> tuple[Recipe, str]:
    copy = Path(shutil.copytree(bench.adapters / "preference", bench.own / "compiled"))
    file = copy / "adapter_model.safetensors"
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(file).items()}, file)
    return _with_adapter(bench, copy)


@plant("unreadable")
def _quantised_model_without_a_base(bench: Bench) -> Recipe:
    copy = Path(shutil.copytree(bench.sparse / "preference", bench.own / "quantised"))
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "q_proj" in name)
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, copy / "model.safetensors")
    return without(spoilt("models.1.model", str(copy), method="linear")(bench), "base_model")


@plant("continued-branch")
def _continued(bench: Bench) -> Recipe:
    base, sft, other = (load_file(bench.dense / name / "model.safetensors") for name in ("base", "sft", "preference"))
    copy = Path(shutil.copytree(bench.dense / "preference", bench.own / "continued"))
    save_file({name: sft[name] + (other[name] - base[name]) for name in base}, copy / "model.safetensors")
    return spoilt("models.1.model", str(copy), pair="dense")(bench)


def _sliced(bench: Bench, *ranges: list[int]) -> Recipe:
    healthy = bench.recipe()
    models = [healthy["base_model"], *(model["model"] for model in healthy["models"])]
    sources = [{"model": model, "layer_range": one} for model, one in zip(models, ranges, strict=True)]
    return without(healthy, "models") | {"slices": [{"sources": sources}], "parameters": {"weight": 0.5}}


@plant("layer-range")
def _beyond_the_model(bench: Bench) -> Recipe:
    return _sliced(bench, [0, 2], [0, 2], [0, 5])


@plant("layer-range")
def _no_layer(bench: Bench) -> Recipe:
    return _sliced(bench, [2, 0], [2, 0], [2, 0])


@plant("layer-range")
def _of_two_lengths(bench: Bench) -> Recipe:
    return _sliced(bench, [0, 1], [0, 1], [0, 2])


def _with_biases(bench: Bench) -> Recipe:
    """A Llama with biases, of which mergekit's definition knows nothing, and an adapter as both branches' folders hold one."""
    recipe = bench.recipe(pair="adapters")
    base = make_base(bench.own / "biased", dtype=torch.bfloat16, attention_bias=True)
    make_tokenizer(base)
    for seed, one in enumerate(recipe["models"], start=1):
        adapter = make_adapter(base, bench.own / f"branch-{seed}", seed=seed)
        proof = Path(one["model"]["lora"]["path"], "paft.json")
        if proof.is_file():
            shutil.copy(proof, adapter)
        one["model"] = {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}
    return recipe | {"base_model": {"model": {"path": str(base)}}}


@plant("unlisted")
def _biases(bench: Bench) -> Recipe:
    return _with_biases(bench)


@plant("unlisted-refused")
def _whole_numbers_that_differ(bench: Bench) -> Recipe:
    recipe = bench.recipe(pair="dense")
    folders = []
    for number, name in enumerate(("base", "sft", "preference")):
        folders.append(Path(shutil.copytree(bench.dense / name, bench.own / name)))
        tensors = load_file(folders[-1] / "model.safetensors") | {"model.table": torch.full((3,), number)}
        save_file(tensors, folders[-1] / "model.safetensors", metadata={"format": "pt"})
    base, *branches = folders
    models = [one | {"model": str(folder)} for one, folder in zip(recipe["models"], branches, strict=True)]
    return recipe | {"base_model": str(base), "models": models}
