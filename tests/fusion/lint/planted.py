"""Recipes with one fault each, of the kind that shows in the recipe alone; `planted_folders` has the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.fusion.lint.bench import Bench, Recipe

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
    ("wrong-models", lambda bench: bare(bench.recipe("slerp", shared_t=0.5))),
    ("unknown-chat-template", spoilt("chat_template", "chatlm", method="task_arithmetic")),
    ("unknown-dtype", spoilt("dtype", "fp32", method="task_arithmetic")),
    ("unknown-parameter", spoilt("models.1.parameters.desnity", 0.5, method="task_arithmetic")),
    ("unknown-parameter", spoilt("models.1.parameters.gamma", 0.5, method="task_arithmetic")),
    ("wrong-scope", spoilt("models.0.parameters.normalize", False, method="task_arithmetic")),
    ("missing-parameter", spoilt("models.0.parameters.weight", None, method="task_arithmetic")),
    ("missing-parameter", spoilt("models.0.parameters.weight", [{"filter": "mlp", "value": 1}], method="task_arithmetic")),
    ("missing-parameter", lambda bench: bare(bench.recipe("slerp") | {"base_model": str(bench.sparse / "sft")})),
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
    ("sce-uniform", lambda bench: bare(bench.recipe("sce"))),
    ("stock-returns-base", lambda bench: bare(bench.recipe("model_stock"))),
    ("ram-drops", lambda bench: bare(bench.recipe("ram", shared_epsilon=1e-3))),
    ("breadcrumbs-zeroes", lambda bench: bench.recipe("breadcrumbs", density=0.2, gamma=0.15)),
    ("breadcrumbs-guts", lambda bench: bench.recipe("breadcrumbs", density=0.2, gamma=0.035)),
    ("della-ranks-zeros", lambda bench: bench.recipe("della", density=0.5, epsilon=0.1)),
    ("trims-nothing", lambda bench: bench.recipe("ties", density=0.3)),
    ("weights-idle", lambda bench: bench.recipe("ties", "dense", density=0.9, weight=0.5)),
    ("weights-idle", spoilt("models.0.parameters.weight", 0.1, weight=0.9)),
    ("weights-idle", spoilt("models.0.parameters.weight", 0.1, method="della", pair="dense", density=0.2, epsilon=0.1)),
    ("dtype-rounds", lambda bench: without(bench.recipe(pair="adapters") | {"dtype": "bfloat16"}, "out_dtype")),
    ("adapter-flags", lambda bench: bench.recipe(pair="adapters")),
    ("own-method", spoilt("merge_method", "ties_global", method="ties", pair="adapters", density=0.5)),
]:  # fmt: skip
    plant(name)(case)


def bare(recipe: Recipe) -> Recipe:
    """Without what stands under the models, for methods that take nothing there."""
    return recipe | {"models": [{"model": model["model"]} for model in recipe["models"]]}


def without(recipe: Recipe, *keys: str) -> Recipe:
    return {key: value for key, value in recipe.items() if key not in keys}


ALSO = {
    "unlisted": {"adapter-flags"},
    # These recipes name no command for their adapters.
    "dtype-rounds": {"adapter-flags"},
    "wrong-folder": {"adapter-flags"},
    # Without its filter the first condition takes every tensor.
    "unknown-key": {"unreachable"},
    # Weights are looked at for `models:` alone, and this is about `slices:`.
    "without-effect": {"not-checked"},
    "layer-range": {"not-checked"},
}
"""What a planted fault cannot but bring along."""
