"""Runs the demo: prepares its inputs, runs the stages, and writes what came out."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rich.console import Console

from paft_plugin.demo import configs, data
from paft_plugin.demo.measures import MEASURES_FILE, TASKS, evaluation_config
from paft_plugin.demo.plan import BRANCHES, FULL_DEMO, QUICK_DEMO, Demo, make_stages, model_folder
from paft_plugin.demo.readme import render_readme
from paft_plugin.demo.search import write_search
from paft_plugin.evaluation.arms import ArmResult, Comparison
from paft_plugin.evaluation.config import write_measures
from paft_plugin.evaluation.scores import read_scores
from paft_plugin.files import write_bytes, write_json, write_text
from paft_plugin.pipeline.local import LocalExecutor
from paft_plugin.pipeline.progress import Progress
from paft_plugin.pipeline.scheduler import run_stages
from paft_plugin.report.table import results_content, terminal_table
from paft_plugin.thresholds import threshold_key

THRESHOLDS = (1e-5, 1e-3)
NEEDED_BYTES = 150 << 20  # three times what a finished run holds: the merges write temporary models
# Small models are slower with two threads than with one; two stages run side by side instead.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


def run_demo(output_dir: Path, *, quick: bool, console: Console) -> Comparison:
    """Run the whole demo in `output_dir`; what an earlier run there finished with the same inputs is kept.

    Raises:
        PaftError: naming the stage that failed, with the end of its log.
        KeyboardInterrupt: after Ctrl-C, once no process of the run is left.
    """
    demo = QUICK_DEMO if quick else FULL_DEMO
    run_dir = output_dir.resolve()
    stages = make_stages(demo, run_dir)
    run_stages(
        stages,
        run_dir,
        LocalExecutor(),
        [Progress(run_dir, console)],
        prepare=lambda: write_inputs(demo, run_dir),
        variables=ENVIRONMENT,
        needed_bytes=NEEDED_BYTES,
    )
    comparison = collect(demo, run_dir)
    write_json(run_dir / "results.json", results_content(comparison))
    write_text(run_dir / "README.md", render_readme(comparison, stages, run_dir))
    console.print(terminal_table(comparison, console.width))
    return comparison


def write_inputs(demo: Demo, run_dir: Path) -> None:
    """Write what the stages read: base model, data, lm-eval tasks, axolotl configs."""
    _copy_base(run_dir / "base")
    data.write_data(run_dir / "data", configs.SEED, items=demo.items)
    data.write_tasks(run_dir / TASKS, run_dir / "data" / "test")
    write_measures(evaluation_config(run_dir), run_dir / MEASURES_FILE)
    configs.write_configs(run_dir, demo.effort)
    write_search(run_dir)


def _copy_base(folder: Path) -> None:
    for shipped in resources.files("paft_plugin.demo").joinpath("base").iterdir():
        write_bytes(folder / shipped.name, shipped.read_bytes())


def collect(demo: Demo, run_dir: Path) -> Comparison:
    """Every arm's scores and the sparsity of its delta, over the tensors that the branches adapt."""
    measures, scores = read_scores(sorted((run_dir / "scores").glob("*/scores.json")))
    sparsities = measure_sparsity(demo, run_dir)
    results = [
        ArmResult.from_score(arm, scores[arm], sparsity=sparsities[arm], model=model_folder(arm).as_posix())
        for arm in demo.arms
    ]
    evaluation = evaluation_config(run_dir)
    return Comparison(measures, results, frozenset(BRANCHES), evaluation.skill, evaluation.preference)


def measure_sparsity(demo: Demo, run_dir: Path) -> dict[str, dict[str, float]]:
    """Arm → threshold → share of its delta's entries with |δ| ≤ threshold; the base model's delta is zero."""
    from paft_plugin.deltas import open_delta
    from paft_plugin.inspection.sparsity import sparsity

    adapted = open_delta(run_dir / "base", run_dir / "branches" / "sft").names
    shares = {"base": {threshold_key(threshold): 1.0 for threshold in THRESHOLDS}}
    for arm in demo.arms[1:]:
        delta = open_delta(run_dir / "base", run_dir / model_folder(arm))
        shares[arm] = sparsity(delta.tensors(adapted), THRESHOLDS).shares
    return shares
