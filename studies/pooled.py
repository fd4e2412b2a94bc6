"""`python -m studies.pooled FIRST LATER OUT`: a study's first seed, and seeds of fewer of its arms, as one study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console

from paft_plugin.files import write_bytes
from paft_plugin.study.design import DESIGN_FILE
from paft_plugin.study.run import recompute
from paft_plugin.study.scores import (
    FIGURES_FILE,
    ITEMS,
    MeasureItems,
    Scores,
    StudyScores,
    packed,
    read_study,
)

CHANGES = (
    "The first seed is of a study of its own, with more arms: here are the arms of the others, and what they ask, too.",
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
    names = dict(pair.split("=", 1) for pair in called)
    one, others = read_study(first), read_study(later)
    arms = {arm.name for arm in others.design.arms}
    items = {**{seed: cut(scores, others, names) for seed, scores in one.items.items()}, **others.items}
    figures = {
        seed: {names.get(arm, arm): own for arm, own in found.items()} for seed, found in one.figures.seeds.items()
    }
    figures = {seed: {arm: own for arm, own in found.items() if arm in arms} for seed, found in figures.items()}
    for seed, scores in items.items():
        write_bytes(out / ITEMS / f"{seed}.npz", packed(scores))
    others.figures.model_copy(update={"seeds": {**figures, **others.figures.seeds}}).write(out / FIGURES_FILE)
    design = {
        "seeds": tuple(items),
        "contrasts": tuple(contrast for contrast in others.design.contrasts if contrast.name not in asked_later),
        "changes": (*others.design.changes, *CHANGES),
    }
    others.design.model_copy(update=design).write(out / DESIGN_FILE)
    recompute(out, Console())


def cut(scores: Scores, others: StudyScores, called: Mapping[str, str]) -> dict[str, MeasureItems]:
    """Of a seed's items what the others have, too, its arms renamed as in `called`.

    Raises:
        ValueError: A measure has other items than theirs, or an arm of theirs is missing.
    """
    found = {}
    for measure, kept in next(iter(others.items.values())).items():
        own = scores[measure]
        if own.items != kept.items:
            raise ValueError(f"{measure} was scored on other items.")
        arms = {name: values for arm, values in own.arms.items() if (name := called.get(arm, arm)) in kept.arms}
        if missing := kept.arms.keys() - arms:
            raise ValueError(f"{measure} was not scored for {', '.join(sorted(missing))}.")
        found[measure] = MeasureItems(own.items, arms, own.sources)
    return found


if __name__ == "__main__":
    main()
