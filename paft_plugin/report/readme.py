"""The `README.md` of a run: the table, what its differences say, and the commands that repeat each arm by hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from paft_plugin.evaluation.arms import RunFile
from paft_plugin.evaluation.results import ArmResult, Comparison
from paft_plugin.report.table import markdown_table

HOW_TO_READ = """\
- **Alignment tax**: what an arm loses on the skill, compared with `sft` (or `sft-l1`, where there is no `sft`), by being aligned.
- **Sparsity at τ**: the share of the delta's entries with |δ| ≤ τ, over the weights that the branches change.

`sft-l1` is the SFT branch with the penalty λ‖δ‖₁, `sft` its twin without. `parallel-…` arms fuse `sft` with the preference
branch, `paft-…` arms fuse `sft-l1` with it, `sequential` trains the preferences on top of SFT. Numbers are of one seed:
differences below twice the standard errors in `results.json` say nothing."""


def render_readme(run: RunFile, comparison: Comparison, name: str) -> str:
    """The run's `README.md` as Markdown."""
    return "\n".join(
        [
            f"# {name}",
            "",
            *([run.description.strip(), ""] if run.description else []),
            *_results(comparison),
            "## Repeat it by hand",
            "",
            "`axolotl paft run` did this, from the folder of this file:",
            "",
            "```sh",
            *_commands(run),
            "```",
            "",
            "A stage's own output is in `logs/`. `python -m paft_plugin.pipeline.train` is stock `axolotl train` with the",
            "config's `seed` applied to the adapter's initialisation as well. `report/report.html` shows all of it.",
            "",
        ]
    )


def _results(comparison: Comparison) -> list[str]:
    said = [f"- {line}" for line in differences(comparison)]
    return [
        markdown_table(comparison),
        "## How to read it",
        "",
        HOW_TO_READ,
        "",
        *(["## What these numbers say", "", "Each difference with its standard error.", "", *said, ""] if said else []),
    ]


def differences(comparison: Comparison) -> list[str]:
    """The paper's comparisons, each with this run's numbers, whichever way they came out."""
    arms = {result.arm: result for result in comparison.results}
    return [
        f"{what}: {text} (`{before}` → `{after}`)."
        for before, after, what in _compared(arms)
        if before in arms and after in arms and (text := _differences(comparison, arms[before], arms[after]))
    ]


def _compared(arms: Sequence[str] | dict[str, ArmResult]) -> Iterator[tuple[str, str, str]]:
    yield "sft", "sft-l1", "L1 on SFT"
    yield "sft", "sequential", "Preferences after SFT (the alignment tax)"
    for arm in arms:
        kind, _, recipe = arm.partition("-")
        if kind == "paft":
            yield "sequential", arm, f"PAFT with {recipe} instead of sequential training"
            yield f"parallel-{recipe}", arm, f"L1 before fusing with {recipe}"


def _differences(comparison: Comparison, before: ArmResult, after: ArmResult) -> str:
    parts = []
    for measure in comparison.measures:
        one, other = before.scores.get(measure.name), after.scores.get(measure.name)
        if one is not None and other is not None:
            error = (before.stderr.get(measure.name, 0.0) ** 2 + after.stderr.get(measure.name, 0.0) ** 2) ** 0.5
            parts.append(f"{measure.name} {one:.2f} → {other:.2f} ({other - one:+.2f} ± {error:.2f})")
    return ", ".join(parts)


def _commands(run: RunFile) -> Iterator[str]:
    for step in run.stages:
        yield f"# {step.title}"
        yield shlex.join(step.command)
