"""The `README.md` of a demo run: the table, how to read it, and the commands that repeat each arm by hand."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from paft_plugin.demo.configs import LAMBDA
from paft_plugin.evaluation.arms import ArmResult, Comparison
from paft_plugin.evaluation.measures import Measure
from paft_plugin.pipeline.stages import Stage
from paft_plugin.report.table import markdown_table

HOW_TO_READ = f"""\
- **Skill**: additions answered right; what the SFT branch teaches. The base model evades most of them.
- **Preference**: how often the polite answer is likelier than a plain or rude one, on held-out pairs.
- **Style**: how many answers to prompts of all kinds are polite; what the preference branch teaches.
- **Retained**: copying, reversing, sorting and saying twice, which the base model can do and should still be able to.
- **Alignment tax**: what an arm loses on the skill, compared with `sft`, by being aligned.
- **Sparsity at τ**: the share of the delta's entries with |δ| ≤ τ, over the weights that the branches adapt.

`sft-l1` is `sft` with the penalty λ‖δ‖₁, λ = {LAMBDA:g}. `parallel-…` arms fuse `sft` with `dpo`, `paft-…` arms fuse
`sft-l1` with `dpo`, `sequential` trains DPO on top of SFT. All prompts scored here were held out of every training, that of
the base model included. Numbers are of one seed: differences below twice the standard errors in `results.json` say nothing.
"""


def render_readme(comparison: Comparison, stages: Sequence[Stage], run_dir: Path) -> str:
    """The run's `README.md` as Markdown."""
    tasks = ",".join(measure.task for measure in comparison.measures)
    return "\n".join(
        [
            "# PAFT demo",
            "",
            "From one small base model: an SFT branch with an L1 penalty on its delta and a preference branch, trained in",
            "parallel and fused (arXiv 2406.17923).",
            "",
            markdown_table(comparison),
            "## How to read it",
            "",
            HOW_TO_READ,
            "## What these numbers say",
            "",
            "Each difference with its standard error.",
            "",
            *[f"- {line}" for line in findings(comparison)],
            "",
            "## Repeat it by hand",
            "",
            "Each arm, from the folder of this file:",
            "",
            "```sh",
            "export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 AXOLOTL_DO_NOT_TRACK=1",
            *_commands(stages, run_dir),
            "```",
            "",
            "A stage's own output is in `logs/`. `python -m paft_plugin.pipeline.train` is stock",
            "`axolotl train --launcher python` with the config's `seed` applied to the adapter's initialisation as well;",
            "`python -m paft_plugin.fusion.run` runs the `mergekit-yaml` command in the recipe's header. An arm can be scored by",
            "lm-eval's own command, too:",
            "",
            "```sh",
            "lm_eval --model hf --model_args pretrained=models/paft-ties,dtype=float32 --include_path evaluation/tasks \\",
            f"  --tasks {tasks} --apply_chat_template --batch_size 64 --device cpu",
            "```",
            "",
            "## Search for better merge settings",
            "",
            "`axolotl paft search paft.yml`, in this folder, tries merge methods and their settings on validation items, never",
            "on the test items of the table above, and leaves what it found in `search/`.",
            "",
        ]
    )


def findings(comparison: Comparison) -> list[str]:
    """The paper's comparisons, each with this run's numbers, whichever way they came out."""
    arms = {result.arm: result for result in comparison.results}
    compared = [
        ("sft", "sft-l1", "L1 on SFT"),
        ("sft", "sequential", "DPO after SFT (the alignment tax)"),
        ("sequential", "paft-ties", "PAFT with TIES instead of sequential training"),
        *(
            (f"parallel-{method}", f"paft-{method}", f"L1 before fusing with {method}")
            for method in ("ties", "dare_ties", "linear")
        ),
    ]
    return [
        f"{what}: {_differences(comparison.measures, arms[before], arms[after])} (`{before}` → `{after}`)."
        for before, after, what in compared
        if before in arms and after in arms
    ]


def _differences(measures: Sequence[Measure], before: ArmResult, after: ArmResult) -> str:
    parts = []
    for name in (measure.name for measure in measures):
        if name in before.scores and name in after.scores:
            one, other = before.scores[name], after.scores[name]
            error = (before.stderr.get(name, 0.0) ** 2 + after.stderr.get(name, 0.0) ** 2) ** 0.5
            parts.append(f"{name} {one:.2f} → {other:.2f} ({other - one:+.2f} ± {error:.2f})")
    return ", ".join(parts)


def _commands(stages: Sequence[Stage], run_dir: Path) -> list[str]:
    lines = []
    for stage in stages:
        words = [_readable(word, run_dir) for word in stage.command]
        if words[:3] == ["python", "-m", "axolotl.cli.main"]:
            words = ["axolotl", *words[3:]]
        lines += [f"# {stage.title}", shlex.join(words)]
    return lines


def _readable(word: str, run_dir: Path) -> str:
    if word == sys.executable:
        return "python"
    return word.replace(f"{run_dir}/", "")
