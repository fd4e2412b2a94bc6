"""Recipes at random: a valid one never gives an error, and a single slip in any key is always found."""

from __future__ import annotations

import copy
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mergekit.merge_methods import get
from mergekit.merge_methods.base import BasePolicy, ParameterSpec

from paft_plugin.fusion.lint.findings import errors
from paft_plugin.fusion.lint.linter import lint_recipe
from paft_plugin.fusion.recipe.methods import METHODS
from tests.fusion.lint.bench import Bench

SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILTERS = ("mlp", "self_attn", "norm", "embed_tokens")
RANGES = {"density": (0.3, 0.7), "epsilon": (0.01, 0.25), "gamma": (0.0, 0.001), "weight": (0.1, 2.0)}
Recipe = dict[str, Any]


def value_of(parameter: ParameterSpec) -> st.SearchStrategy[Any]:
    if parameter.value_type is bool:
        return st.booleans()
    if parameter.value_type is int:
        return st.integers(1, 20)
    return st.floats(*RANGES.get(parameter.name, (0.05, 0.95)))


def setting_of(parameter: ParameterSpec) -> st.SearchStrategy[Any]:
    """A value, a gradient over the layers, or conditions that end with one for all other tensors."""
    value = value_of(parameter)
    condition = st.fixed_dictionaries({"filter": st.sampled_from(FILTERS), "value": value})
    conditions = st.lists(condition, max_size=2, unique_by=lambda one: one["filter"])
    whole = st.builds(lambda some, last: [*some, {"value": last}], conditions, value)
    return st.one_of(value, st.lists(value, min_size=3, max_size=4), whole)


@st.composite
def recipes(draw: st.DrawFn, folder: Path) -> Recipe:
    """A recipe for two whole models, valid by mergekit's own description of the method."""
    method = draw(st.sampled_from(sorted(METHODS)))
    spec = get(method).spec
    names: list[Any] = [{"model": {"path": str(folder / name)}} for name in ("base", "sft", "preference")]
    if draw(st.booleans()):
        names = [name["model"]["path"] for name in names]
    base, models = names[0], names[1:]

    def parameters(specs: tuple[ParameterSpec, ...]) -> dict[str, Any]:
        wanted = [one for one in specs if one.required or draw(st.booleans())]
        return {one.name: draw(setting_of(one)) for one in wanted}

    recipe: Recipe = {"merge_method": method, "dtype": "float32", "out_dtype": "float32"}
    recipe["models"] = [{"model": model, "parameters": parameters(spec.input_parameters)} for model in models]
    recipe["parameters"] = parameters(spec.shared_parameters)
    if spec.contract.base != BasePolicy.IGNORED:
        recipe["base_model"] = models[0] if method == "slerp" else base
    if draw(st.booleans()):
        recipe["tokenizer"] = {"source": base}
    return recipe


def keys(content: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every key."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(content, dict):
            yield (*way, key)
        yield from keys(value, (*way, key))


def slipped(draw: st.DrawFn, key: str) -> str:
    """The key with one letter more, one less, another one, or two swapped; never the key itself."""
    at, letter = draw(st.integers(0, len(key) - 1)), draw(st.sampled_from(string.ascii_lowercase + "_"))
    other = key[at + 1 : at + 2] + key[at] + key[at + 2 :]
    slips = (
        key[:at] + letter + key[at:],
        key[:at] + key[at + 1 :],
        key[:at] + letter + key[at + 1 :],
        key[:at] + other,
    )
    return draw(st.sampled_from([slip for slip in slips if slip != key]))


def lint(bench: Bench, recipe: Recipe) -> list[str]:
    file = bench.write(yaml.safe_dump(recipe, sort_keys=False))
    return [f"{finding.name} {finding.where}" for finding in errors(lint_recipe(file, read_weights=False))]


@SETTINGS
@given(data=st.data())
def test_a_valid_recipe_gives_no_error_and_mergekit_reads_it(bench: Bench, data: st.DataObject) -> None:
    from mergekit.config import MergeConfiguration

    recipe = data.draw(recipes(bench.dense))
    MergeConfiguration.model_validate(copy.deepcopy(recipe))
    assert lint(bench, recipe) == []


@SETTINGS
@given(data=st.data())
def test_a_single_slip_in_any_key_is_an_error(bench: Bench, data: st.DataObject) -> None:
    recipe = data.draw(recipes(bench.dense))
    *way, key = data.draw(st.sampled_from(list(keys(recipe))))
    slip = slipped(data.draw, str(key))
    inside: Any = recipe
    for part in way:
        inside = inside[part]
    renamed = {slip if old == key else old: value for old, value in inside.items()}
    if len(renamed) < len(inside) or (way[-1:] == ["parameters"] and slip in {"r", "t"}):
        return  # the slip made another key that stands there, or another parameter's name
    inside.clear()
    inside.update(renamed)
    assert lint(bench, recipe) != []


def test_every_key_of_the_shipped_recipes_is_guarded(bench: Bench) -> None:
    """Not by chance: each key of each shipped recipe, with one letter missing."""
    from paft_plugin.fusion.recipe.examples import FOLDER

    seen = set()
    for file in sorted(FOLDER.glob("*.yml")):
        for *way, key in keys(yaml.safe_load(file.read_text())):
            recipe = yaml.safe_load(file.read_text())
            kind = (recipe["merge_method"] * ("parameters" in way), tuple(map(type, way)), tuple(way[-1:]), key)
            if kind in seen:
                continue
            seen.add(kind)
            inside: Any = recipe
            for part in way:
                inside = inside[part]
            inside[str(key)[:-1]] = inside.pop(key)
            found = lint(bench, recipe)
            assert any(name.startswith(("unknown", "wrong-kind", "one-of-three")) for name in found), (
                file.name,
                way,
                key,
            )


@pytest.mark.parametrize(
    "text", ["\x00", "a: !!python/object:os.system {}", "? [a]\n: b\n", "a: &x [*x]", "- " * 50, "&a"]
)
def test_no_text_is_a_crash(bench: Bench, text: str) -> None:
    assert [finding.name for finding in errors(bench.lint(text))]


@SETTINGS
@given(
    text=st.text(max_size=60),
    key=st.sampled_from(["models", "base_model", "parameters", "tokenizer", "slices", "dtype"]),
)
def test_no_value_is_a_crash(bench: Bench, text: str, key: str) -> None:
    recipe = bench.recipe("ties", "dense") | {key: text}
    bench.lint(yaml.safe_dump(recipe, allow_unicode=True), read_weights=False)
