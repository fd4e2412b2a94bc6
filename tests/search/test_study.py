"""The study's memory: the same search however often it is cut off, one process at a time, and never of other inputs."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.search.space import make_spaces
from paft_plugin.search.study import Finished, Proposal, Study, locked, open_study

SPACES = make_spaces({"ties": {}, "task_arithmetic": {}, "linear": {}})
INPUTS = {"the base model": "1", "the seed": "7"}
DIRECTIONS = ("maximize", "minimize")


def scores_of(proposal: Proposal) -> tuple[float, float]:
    """A smooth landscape that leaves no two proposals alike."""
    values = [float(value) for value in proposal.options.values()] or [0.5]
    return sum(values), sum((value - 0.7) ** 2 for value in values)


def step(study: Study) -> Proposal:
    (proposal,) = study.ask()
    assert proposal is not None
    study.tell(proposal, scores_of(proposal), (0.1, None), 1.0)
    return proposal


def tried(folder: Path) -> list[tuple[int, str, dict[str, float], Sequence[float] | None]]:
    with open_study(folder, DIRECTIONS, INPUTS, SPACES, 7) as study:
        return [key(trial) for trial in study.finished()]


def key(trial: Finished) -> tuple[int, str, dict[str, float], Sequence[float] | None]:
    return trial.number, trial.method, dict(trial.options), trial.scores


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, dict[str, float], Sequence[float] | None]]:
    """A search of 12 trials that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with open_study(folder, DIRECTIONS, INPUTS, SPACES, 7) as study:
        for _ in range(12):
            step(study)
    return tried(folder)


def test_the_defaults_come_first_and_then_what_the_sampler_learns(whole: list[tuple[int, str, dict, tuple]]) -> None:
    assert [(number, method, options) for number, method, options, _ in whole[:3]] == [
        (1, "ties", {}),
        (2, "task_arithmetic", {}),
        (3, "linear", {}),
    ]
    assert all(options and method != "linear" for _, method, options, _ in whole[3:])
    assert len({str(options) for _, _, options, _ in whole[3:]}) == 9


def test_another_seed_is_another_search(whole: list[tuple[int, str, dict, tuple]], tmp_path: Path) -> None:
    with open_study(tmp_path, DIRECTIONS, INPUTS, SPACES, 8) as study:
        for _ in range(4):
            step(study)
    assert tried(tmp_path)[3:] != whole[3:4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("moment", ["asked", "half told", "told"])
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(
    whole: list[tuple[int, str, dict, tuple]], tmp_path: Path, moment: str
) -> None:
    for trials in (2, 10):
        kill_after(trials, moment, tmp_path)
        with open_study(tmp_path, DIRECTIONS, INPUTS, SPACES, 7) as study:
            assert [key(trial) for trial in study.finished()] == whole[: len(study.finished())]
    with open_study(tmp_path, DIRECTIONS, INPUTS, SPACES, 7) as study:
        while len(study.finished()) < 12:
            step(study)
    assert tried(tmp_path) == whole


def kill_after(trials: int, moment: str, folder: Path) -> None:
    """Have a process killed (-9) in the trial after so many."""
    child = os.fork()
    if child == 0:
        with open_study(folder, DIRECTIONS, INPUTS, SPACES, 7) as study:
            while len(study.finished()) < trials:
                step(study)
            (proposal,) = study.ask()
            if moment == "half told" and proposal and proposal.trial:
                proposal.trial.set_user_attr("method", proposal.method)
            if moment == "told" and proposal:
                study.tell(proposal, scores_of(proposal), (0.1, None), 1.0)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_second_search_in_the_same_place_is_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "search"),
        pytest.raises(PaftError, match="another search is at work"),
        locked(tmp_path / "search"),
    ):
        pass
    with locked(tmp_path / "search"):
        pass  # when the first is done, it is free again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_killed_search_holds_nothing(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass


def test_other_inputs_are_refused_and_named(tmp_path: Path) -> None:
    tried(tmp_path)
    for other in ({**INPUTS, "the base model": "2"}, {"the seed": "7"}):
        with (
            pytest.raises(PaftError, match="other inputs: the base model changed since"),
            open_study(tmp_path, DIRECTIONS, other, SPACES, 7),
        ):
            pass
    assert tried(tmp_path) == []


def test_a_file_that_is_no_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"this is no database" * 100)
    with (
        pytest.raises(PaftError, match=r"study\.db: cannot be used"),
        open_study(tmp_path, DIRECTIONS, INPUTS, SPACES, 7),
    ):
        pass


def test_a_trial_without_a_finite_score_counts_and_is_not_tried_again(tmp_path: Path) -> None:
    with open_study(tmp_path, DIRECTIONS, INPUTS, SPACES, 7) as study:
        for _ in range(5):
            (proposal,) = study.ask()
            assert proposal is not None
            study.tell(proposal, None, (None, None), 1.0)
    assert [(number, scores) for number, _, _, scores in tried(tmp_path)] == [(n, None) for n in range(1, 6)]
    assert len({(method, str(options)) for _, method, options, _ in tried(tmp_path)}) == 5


def test_nothing_to_choose_ends_after_the_defaults(tmp_path: Path) -> None:
    with open_study(tmp_path, DIRECTIONS, INPUTS, make_spaces({"linear": {}}), 7) as study:
        step(study)
        assert study.ask() == []
