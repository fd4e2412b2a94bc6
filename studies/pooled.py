"""`python -m studies.pooled FIRST LATER OUT`: a study's first seed, and seeds of fewer of its arms, as one study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from paft_plugin.study.design import DESIGN_FILE
from paft_plugin.study.run import recompute
from paft_plugin.study.scores import MeasureItems, Scores, StudyScores, read_study, write_scores

CHANGES = (
    "The first seed is of a study of its own, with more arms: here are the arms of all seeds, and what the others ask. "
    "It had been scored before that was asked.",
    "What each way costs is of the other seeds alone.",
)


@click.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("later", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--called", multiple=True, metavar="OLD=NEW", help="An arm of FIRST, and what LATER calls the same.")
@click.option(
    "--asked-later", multiple=True, metavar="CONTRAST", help="One that FIRST's scores gave rise to: left out."
)
def main(first: Path, later: Path, out: Path, called: tuple[str, ...], asked_later: tuple[str, ...]) -> None:
    """Write the small files of all seeds, those in FIRST and those in LATER, into OUT, and every table anew from them."""
    one, others = read_study(first), read_study(later)
    names = dict(pair.split("=", 1) for pair in called)
    figures = {
        seed: {names.get(arm, arm): own for arm, own in found.items()} for seed, found in one.figures.seeds.items()
    } | dict(others.figures.seeds)
    shared = set.intersection(*map(set, figures.values()))
    items = {seed: cut(renamed(scores, names), others, shared) for seed, scores in one.items.items()}
    items |= {seed: cut(scores, others, shared) for seed, scores in others.items.items()}
    figures = {seed: {arm: own for arm, own in found.items() if arm in shared} for seed, found in figures.items()}
    write_scores(out, items, others.figures.model_copy(update={"seeds": figures}))
    design = {
        "seeds": tuple(items),
        "arms": tuple(arm for arm in others.design.arms if arm.name in shared),
        "contrasts": tuple(contrast for contrast in others.design.contrasts if contrast.name not in asked_later),
        "changes": (*others.design.changes, *CHANGES),
    }
    others.design.model_copy(update=design).write(out / DESIGN_FILE)
    recompute(out, Console())


def renamed(scores: Scores, names: Mapping[str, str]) -> dict[str, MeasureItems]:
    """A seed's items, with its arms called as in `names`."""
    return {
        measure: replace(own, arms={names.get(arm, arm): values for arm, values in own.arms.items()})
        for measure, own in scores.items()
    }


def cut(scores: Scores, others: StudyScores, arms: set[str]) -> dict[str, MeasureItems]:
    """Of a seed's items those of `arms`, by the measures that the others have.

    Raises:
        ValueError: A measure has other items than theirs.
    """
    found = {}
    for measure, theirs in next(iter(others.items.values())).items():
        own = scores[measure]
        if own.items != theirs.items:
            raise ValueError(f"{measure} was scored on other items.")
        found[measure] = replace(own, arms={arm: values for arm, values in own.arms.items() if arm in arms})
    return found


if __name__ == "__main__":
    main()
