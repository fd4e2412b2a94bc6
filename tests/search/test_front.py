"""The front: what nothing dominates, whatever the directions, each value once."""

from __future__ import annotations

import random

import optuna
import pytest

from paft_plugin.search.report import even_handed, pareto_front


def test_a_small_case_by_hand() -> None:
    scores = [(1.0, 0.2), (0.9, 0.9), (0.5, 0.9), (0.2, 1.0), (0.9, 0.9), (1.0, 0.1)]
    assert pareto_front(scores, [True, True]) == [0, 1, 3]
    assert pareto_front(scores, [False, True]) == [3]
    assert pareto_front([(0.1,), (0.3,), (0.3,), (0.2,)], [True]) == [1]
    assert pareto_front([(0.1,), (0.3,)], [False]) == [0]
    assert pareto_front([], [True]) == []


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_it_is_the_front_that_optuna_finds_each_value_once(objectives: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = random.Random(objectives)
    maximize = [rng.random() < 0.5 for _ in range(objectives)]
    study = optuna.create_study(directions=["maximize" if up else "minimize" for up in maximize])
    # Few different values, so that many rows are equal in some objectives or in all.
    scores = [tuple(float(rng.randrange(4)) for _ in range(objectives)) for _ in range(60)]
    for row in scores:
        study.add_trial(optuna.trial.create_trial(values=row))
    front = pareto_front(scores, maximize)
    theirs = (
        {tuple(trial.values) for trial in study.best_trials} if objectives > 1 else {tuple(study.best_trial.values)}
    )
    assert {scores[place] for place in front} == theirs
    assert len(front) == len(theirs)
    assert all(scores.index(scores[place]) == place for place in front)  # of equals the first


def test_even_handed_gives_up_least_of_any_best() -> None:
    # Against the best (1.0, 0.9, 1.0) the greatest losses are .2, .06 and .5 of it.
    scores = [(1.0, 0.72, 1.0), (0.98, 0.88, 0.94), (0.9, 0.9, 0.5), (0.5, 0.5, 0.5)]
    assert even_handed(scores, [True] * 3) == 1
    # A loss counts as a share: 1 of 100 points of perplexity is less than .1 of .5.
    assert even_handed([(101.0, 0.5), (100.0, 0.4)], [False, True]) == 0
    assert even_handed([(0.0, 0.0)], [True, False]) == 0
