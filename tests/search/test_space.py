"""What is proposed: inside the ranges, a recipe that can be written, and no model under two names."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.write import write_recipe
from paft_plugin.search.space import DEFAULTS, make_spaces, propose, range_problems, seed_of
from tests.fusion.world import World, make_world


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> World:
    import torch

    return make_world(tmp_path_factory.mktemp("world"), torch.float32)


def test_every_proposal_is_in_range_and_a_valid_recipe(branches: World, tmp_path: Path) -> None:
    spaces = make_spaces({name: {} for name in DEFAULTS})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        method, options = propose(study.ask(), spaces)
        seen.add((method, tuple(sorted(options))))
        for option, value in options.items():
            if option != "normalize":
                low, high = spaces[method].ranges[option.removesuffix("_sft").removesuffix("_preference")]
                assert low <= value <= high
        write_recipe(branches.request(tmp_path / "recipe.yml", method, **options))
    assert seen == {
        ("ties", ("density", "normalize", "scale")),
        ("ties", ("density", "normalize", "weight_preference", "weight_sft")),
        ("dare_ties", ("density", "weight_preference", "weight_sft")),
        ("dare_linear", ("density", "weight_preference", "weight_sft")),
        ("task_arithmetic", ("weight_preference", "weight_sft")),
    }


@pytest.mark.parametrize("method", [name for name in DEFAULTS if DEFAULTS[name]])
def test_a_methods_defaults_are_the_proposal_that_equals_them(branches: World, tmp_path: Path, method: str) -> None:
    """So the sampler learns from the defaults what they really are."""
    spaces = make_spaces({method: {}})
    defaults = spaces[method].default()
    fixed = optuna.trial.FixedTrial({"method": method, **defaults})
    chosen, options = propose(fixed, spaces)
    plain = write_recipe(branches.request(tmp_path / "one.yml", chosen))
    same = write_recipe(branches.request(tmp_path / "two.yml", chosen, **options))
    content = [
        [line for line in recipe.file.read_text().splitlines() if not line.lstrip().startswith("#")]
        for recipe in (plain, same)
    ]
    assert content[0] == content[1]


def test_given_ranges_replace_the_methods_own_and_defaults_outside_are_not_told() -> None:
    spaces = make_spaces({"ties": {"density": (0.5, 0.6)}, "linear": {"scale": (0.5, 2.0)}})
    assert spaces["ties"].ranges["density"] == (0.5, 0.6)
    assert spaces["ties"].ranges["scale"] == DEFAULTS["ties"]["scale"]
    assert spaces["ties"].default() == {}  # 0.2 is outside
    assert spaces["linear"].searched
    assert not make_spaces({"linear": {}})["linear"].searched


def test_the_ranges_stay_or_a_search_that_is_under_way_would_be_another() -> None:
    assert DEFAULTS == {
        "ties": {"density": (0.02, 1.0), "weight": (0.1, 1.5), "scale": (0.4, 1.6)},
        "dare_ties": {"density": (0.2, 0.95), "weight": (0.1, 1.5)},
        "dare_linear": {"density": (0.2, 0.95), "weight": (0.1, 1.5)},
        "task_arithmetic": {"weight": (0.1, 1.5)},
        "linear": {},
        "ram": {},
    }


def test_depth_is_searched_as_two_numbers_where_a_range_is_given(branches: World, tmp_path: Path) -> None:
    spaces = make_spaces({"dare_ties": {"depth": (0.5, 1.5)}})
    parameters = spaces["dare_ties"].default()
    assert parameters["dare_ties.depth.first"] == parameters["dare_ties.depth.last"] == 1.0
    changed = parameters | {"method": "dare_ties", "dare_ties.depth.last": 1.25}
    method, options = propose(optuna.trial.FixedTrial(changed), spaces)
    assert options["depth"] == (1.0, 1.25)
    write_recipe(branches.request(tmp_path / "recipe.yml", method, **options))


def test_a_range_of_what_a_method_does_not_take_is_said() -> None:
    given = {"density": (0.1, 0.5), "weight": (0.1, 1.0), "scale": (0.5, 1.0)}
    problems = range_problems("karcher", given)
    assert [problem.partition(":")[0] for problem in problems] == list(given)


def test_every_default_range_fits_its_method() -> None:
    assert set(DEFAULTS) <= set(METHODS)
    assert [problem for name in DEFAULTS for problem in range_problems(name, DEFAULTS[name])] == []


def test_the_samplers_seed_depends_on_the_seed_and_on_what_is_finished() -> None:
    assert len({seed_of(seed, finished) for seed in (0, 1, 2) for finished in range(50)}) == 150
    assert seed_of(1, 2) == seed_of(1, 2)
