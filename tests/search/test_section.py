"""`paft.yml`: everything that is wrong at once, with what to do; paths from the file's own folder; nothing skipped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.config import read_config
from paft_plugin.search.space import DEFAULTS


def write(folder: Path, **content: Any) -> Path:
    for name in ("base", "sft", "preference"):
        (folder / name).mkdir(exist_ok=True)
    whole = {"base": "base", "sft": "sft", "preference": "preference", "output_dir": "out", **content}
    file = folder / "paft.yml"
    file.write_text(yaml.safe_dump(whole, sort_keys=False))
    return file


def problems(file: Path) -> list[str]:
    with pytest.raises(PaftError) as caught:
        read_config(file)
    assert all("\n" not in problem for problem in caught.value.problems)
    return [problem.removeprefix(f"{file}: ") for problem in caught.value.problems]


def test_a_short_file_has_defaults_and_paths_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, search={"objectives": ["skill"]})
    monkeypatch.chdir("/")
    config = read_config(file)
    assert (config.base, config.output_dir) == (str(tmp_path / "base"), tmp_path / "out")
    assert list(config.search.methods) == list(DEFAULTS)
    assert (config.search.trials, config.search.seed, config.search.timeout, config.search.limit) == (
        40,
        42,
        None,
        None,
    )


def test_lists_names_alone_and_single_numbers_are_short_for_mappings_and_ranges(tmp_path: Path) -> None:
    methods = {"ties": {"density": 0.3, "scale": [0.5, 1]}, "linear": None}
    search = read_config(write(tmp_path, search={"objectives": {"skill": None}, "methods": methods})).search
    assert search.methods["ties"]["density"] == (0.3, 0.3)
    assert search.methods["ties"]["scale"] == (0.5, 1.0)
    assert list(search.methods) == ["ties", "linear"]


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        bse="base",
        base="nowhere",
        search={
            "objectives": {"skill": {"metrc": "acc"}},
            "methods": {"tiess": None, "ties": {"denisty": 0.5}},
            "trials": 0,
            "tails": 3,
        },
    )
    said = problems(file)
    for start in (
        "base: nowhere is neither a folder",
        "bse: no such key. Did you mean base?",
        "search.objectives.skill.metrc: no such key. Did you mean metric?",
        "search.methods.tiess: no such method. Did you mean ties?",
        "search.methods.ties.denisty: no such key. Did you mean density?",
        "search.trials: Input should be greater than or equal to 1. How many in all",
        "search.tails: no such key. Did you mean trials?",
    ):
        assert [problem for problem in said if problem.startswith(start)], (start, said)
    assert len(said) == 7


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"methods": {"ties": {"density": [0.5, 2]}}}, "search.methods: ties.density: [0.5, 2] must be at most 1."),
        ({"methods": {"dare_ties": {"density": 1}}}, "search.methods: dare_ties.density: [1, 1] must be below 1."),
        ({"methods": {"ties": {"scale": [2, 1]}}}, "search.methods: ties.scale: [2, 1] runs backwards."),
        ({"methods": {"ties": {"weight": [0, 1]}}}, "search.methods: ties.weight: [0, 1] must be above 0."),
        ({"methods": {"linear": {"density": 0.5}}}, "search.methods: linear.density: linear keeps every entry."),
        ({"methods": {"ties": {"scale": [1, 2, 3]}}}, "search.methods.ties.scale: "),
        ({"trials": 3}, "search: trials: 3 is fewer than the 6 methods"),
        ({"seed": 2**32}, "search.seed: "),
        ({"timeout": float("inf")}, "search.timeout: "),
        ({"objectives": ["a", "a"]}, "search.objectives: a is there twice."),
        ({"objectives": {"a": {"name": "x"}, "b": {"name": "x"}}}, "search.objectives: two are called x."),
        ({"tasks": "nowhere"}, "search.tasks: "),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, search: dict[str, Any], message: str) -> None:
    (said,) = problems(write(tmp_path, search={"objectives": ["skill"], **search}))
    assert said.startswith(message)


def test_a_file_that_is_none_or_says_a_thing_twice_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "paft.yml"
    assert problems(file)[0].startswith("no such file")
    for text, message in (
        ("a: [", "no valid YAML"),
        ("- 1", "should hold keys"),
        ("base: x\nbase: y", "base is there twice"),
    ):
        file.write_text(text)
        (said,) = problems(file)
        assert message in said
