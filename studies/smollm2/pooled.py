"""`python -m studies.smollm2.pooled CORE OUT`: the first seed, of study.yml, and those of core.yml in CORE as one study."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from paft_plugin.files import write_bytes
from paft_plugin.study.design import DESIGN_FILE, Design
from paft_plugin.study.run import recompute
from paft_plugin.study.scores import (
    FIGURES_FILE,
    ITEMS,
    ArmFigures,
    MeasureItems,
    Scores,
    StudyScores,
    packed,
    read_study,
)

FIRST_SEED = Path(__file__).parent / "first_seed"
CALLED = {"parallel-task_arithmetic": "dense-sum", "parallel-ram": "dense-ram"}
"""Arm of study.yml → the same fusion in core.yml, which names it by itself."""
ASKED_LATER = "joint"
"""The contrast of core.yml that seed 1's scores gave rise to: the other seeds can answer it, and it not with them."""
CHANGES = (
    "Seed 1 is that of study.yml, which asks the same four questions, with `best:` for what its validation items then chose.",
    "What each way costs is of the other seeds alone.",
)


@click.command()
@click.argument("core", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
def main(core: Path, out: Path) -> None:
    """Write the small files of all seeds into OUT, and every table anew from them."""
    first, others = read_study(FIRST_SEED), read_study(core)
    items = {**{seed: cut(scores, others) for seed, scores in first.items.items()}, **others.items}
    figures = {
        **{seed: renamed(arms, others.design) for seed, arms in first.figures.seeds.items()},
        **others.figures.seeds,
    }
    for seed, scores in items.items():
        write_bytes(out / ITEMS / f"{seed}.npz", packed(scores))
    others.figures.model_copy(update={"seeds": figures}).write(out / FIGURES_FILE)
    design = {
        "seeds": tuple(items),
        "contrasts": tuple(one for one in others.design.contrasts if one.name != ASKED_LATER),
        "changes": (*others.design.changes, *CHANGES),
    }
    others.design.model_copy(update=design).write(out / DESIGN_FILE)
    recompute(out, Console())


def cut(scores: Scores, others: StudyScores) -> dict[str, MeasureItems]:
    """Of a seed's items what the others have, too.

    Raises:
        ValueError: A measure has other items than theirs.
    """
    theirs = next(iter(others.items.values()))
    found = {}
    for measure, kept in theirs.items():
        own = scores[measure]
        if own.items != kept.items:
            raise ValueError(f"{measure} was scored on other items.")
        arms = {name: values for arm, values in own.arms.items() if (name := CALLED.get(arm, arm)) in kept.arms}
        found[measure] = MeasureItems(own.items, arms, own.sources)
    return found


def renamed(arms: dict[str, ArmFigures], design: Design) -> dict[str, ArmFigures]:
    """The figures of those arms that the design names."""
    wanted = {arm.name for arm in design.arms}
    return {name: figures for arm, figures in arms.items() if (name := CALLED.get(arm, arm)) in wanted}


if __name__ == "__main__":
    main()
