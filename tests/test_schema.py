"""Keys that no model knows, in what a person wrote."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.schema import dotted, names_of, unknown_keys


class Leaf(BaseModel):
    weight: float = 1.0
    limit: int | None = Field(default=None, validation_alias="max_items")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    leaf: Leaf | None = None


class Other(BaseModel):
    colour: str = ""


class Root(BaseModel):
    leaves: list[Leaf | Other] | None = None
    by_name: dict[str, Leaf] = {}
    anything: dict[str, Any] = {}
    open: Open | None = None
    marked: Annotated[Leaf, "a note"] | str = ""


@pytest.mark.parametrize(
    ("content", "unknown"),
    [
        ({"leaf": 1}, ["leaf"]),
        ({"leaves": [{"weight": 1, "colour": "red"}, {"wieght": 1}]}, ["leaves[1].wieght"]),
        ({"by_name": {"a": {"max_items": 1}, "b": {"min_items": 1}}}, ["by_name.b.min_items"]),
        ({"anything": {"a": {"b": 1}}, "open": {"own": {"b": 1}, "leaf": {"b": 1}}}, ["open.leaf.b"]),
        ({"marked": {"wieght": 1}, "leaves": "no list"}, ["marked.wieght"]),
        ({"marked": "text", "by_name": []}, []),
    ],
)
def test_unknown_keys_are_found_at_any_depth(content: dict[str, Any], unknown: list[str]) -> None:
    assert [dotted(keys) for keys, _ in unknown_keys([Root], content)] == unknown


def test_the_models_at_an_unknown_key_say_what_may_stand_there() -> None:
    ((_, models),) = unknown_keys([Root], {"leaves": [{"wieght": 1}]})
    assert names_of(models) == ["weight", "limit", "max_items", "colour"]
