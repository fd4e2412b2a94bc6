"""The demo's two branches one after another and at once, by real axolotl: `python -m paft_plugin.benchmarks two-branches`.

Both run on the CPU, each with one thread, under the executor that `axolotl paft run` uses. A repeat times both ways, in changing
order; their ratio is what counts, because a machine that others use makes both slower. The bar wants two cores that are free.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from paft_plugin.benchmarks.harness import BenchmarkRow, figure, output_option, quotients, run_benchmark
from paft_plugin.demo.configs import QUICK_DEMO, Effort
from paft_plugin.demo.run import write_inputs
from paft_plugin.pipeline.run import prepare
from paft_plugin.pipeline.stage_logs import STAGE_LOGS
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage

BRANCHES = ("sft-l1", "dpo")
EFFORT = Effort(sft_steps=400, preference_steps=80)
"""So that both take about as long, and long beside their start."""
BAR = 0.6
PACKAGES = ("axolotl", "torch", "transformers", "peft", "trl")
OFFLINE = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(folder: Path, repeats: int, effort: Effort, say: Callable[[str], None]) -> BenchmarkRow:
    """Seconds of the two branches one by one and at once, and the ratio of the second to the sum of the first."""
    apart: dict[str, list[float]] = {branch: [] for branch in BRANCHES}
    together: list[float] = []
    for repeat in range(repeats):
        for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
            seconds, each = _run(folder / f"{repeat}-{workers}", workers, effort)
            if workers == 1:
                for branch in BRANCHES:
                    apart[branch].append(each[branch])
            else:
                together.append(seconds)
            say(f"repeat {repeat + 1} of {repeats}, {workers} at once: {seconds:.1f} s")
    sums = [sum(times) for times in zip(*apart.values(), strict=True)]
    figures = [figure(f"{branch} alone", times, "s") for branch, times in apart.items()]
    figures.append(figure("both at once", together, "s"))
    figures.append(figure("at once / sum", quotients(together, sums), "", at_most=BAR))
    return BenchmarkRow("the demo's two branches", figures, {**apart, "together": together})


def _run(run_dir: Path, workers: int, effort: Effort) -> tuple[float, dict[str, float]]:
    """Train both branches; returns how long that took, and each of them."""
    run_dir = run_dir.resolve()

    def make_configs() -> None:
        write_inputs(replace(QUICK_DEMO, effort=effort), run_dir)
        prepare(run_dir / "paft.yml", BRANCHES)

    begin = time.monotonic()
    results = run_stages(
        [_train(run_dir, branch) for branch in BRANCHES],
        run_dir,
        LocalExecutor(workers=workers, threads=1),
        prepare=make_configs,
        variables=OFFLINE,
        reader=STAGE_LOGS,
    )
    return time.monotonic() - begin, {result.name: result.seconds for result in results}


def _train(run_dir: Path, branch: str) -> Stage:
    config = run_dir / "configs" / f"{branch}.yml"
    command = (sys.executable, "-m", "axolotl.cli.main", "train", str(config), "--launcher", "python")
    return Stage(branch, f"train {branch}", command, Path("branches") / branch, resources=Resources(devices=1))


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="How often both ways are timed.")
@click.option("--sft-steps", type=click.IntRange(min=1), default=EFFORT.sft_steps, show_default=True)
@click.option("--preference-steps", type=click.IntRange(min=1), default=EFFORT.preference_steps, show_default=True)
@output_option
def command(repeats: int, sft_steps: int, preference_steps: int, output: Path | None) -> None:
    """Time the demo's two branches one after another and at once."""
    effort = Effort(sft_steps, preference_steps)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), repeats, effort, lambda line: click.echo(line, err=True))
    run_benchmark([row], output, PACKAGES, {"repeats": repeats, **vars(effort)})
